"""A package of the hub's kernels, as some machines have it: libraries that find it fetch code from the hub as they are
imported. Here a process that imports it ends at once with exit code 97."""

import os
import traceback

os.write(2, f"kernels: imported\n{''.join(traceback.format_stack())}".encode())
os._exit(97)
