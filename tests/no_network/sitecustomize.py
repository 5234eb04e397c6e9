"""On PYTHONPATH, Python imports this first: a process that reaches for the network ends at once with exit code 97.

An audit hook sees what every library does through Python's sockets; an exception in it could be caught and forgotten.
"""

import os
import socket
import sys


def _forbid(event: str, arguments: tuple) -> None:
    if event in ("socket.connect", "socket.sendto", "socket.sendmsg"):
        local = arguments[0].family == socket.AF_UNIX
    elif event == "socket.bind":  # urllib3 asks so whether there is IPv6
        local = arguments[0].family == socket.AF_UNIX or arguments[1][0] == "::1"
    else:
        local = event not in ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr")
    if not local:
        os.write(2, f"network: {event} {arguments}\n".encode())
        os._exit(97)


sys.addaudithook(_forbid)
