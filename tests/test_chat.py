"""The conversation on a terminal of its own."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time

ESCAPES = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")


def _heed_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Terminal:
    def __init__(self, *arguments: str, cwd):
        self.master, slave = pty.openpty()
        command = [sys.executable, "-m", "scorefast", *arguments]
        environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
        streams = {"stdin": slave, "stdout": slave, "stderr": slave}
        # A test run in the background of a script ignores Ctrl-C, and so would its children.
        self.process = subprocess.Popen(command, **streams, cwd=cwd, env=environment, preexec_fn=_heed_interrupts)
        os.close(slave)
        self.text = ""

    def wait_for(self, what: str, seconds: float = 120) -> str:
        """What was printed up to and including `what`; it is consumed."""
        deadline = time.monotonic() + seconds
        while what not in self.text:
            assert time.monotonic() < deadline, self.text
            if select.select([self.master], [], [], 0.2)[0]:
                try:
                    data = os.read(self.master, 65536).decode(errors="replace")
                except OSError:  # the other side is gone
                    data = ""
                self.text += ESCAPES.sub("", data)
                assert data or what in self.text, self.text
        seen, self.text = self.text.split(what, 1)
        return seen + what

    def interrupt_until(self, what: str) -> None:
        """Ctrl-C, again and again: the line editor loses one sent after it wrote its prompt and before it listens."""
        for _ in range(60):
            self.process.send_signal(signal.SIGINT)
            if select.select([self.master], [], [], 1)[0]:
                break
        self.wait_for(what)

    def type(self, line: str) -> None:
        os.write(self.master, line.encode())


def test_a_conversation(trained, tmp_path):
    terminal = Terminal("chat", "runs/stage2", cwd=trained)
    terminal.wait_for("you> ")
    terminal.type("What is 123 + 456?\n")
    seen = terminal.wait_for("you> ")
    assert "first  The answer is 579" in seen
    assert "second " in seen
    assert "unchanged" in seen or "change " in seen
    terminal.type("/again\n")
    assert "no. 3" in terminal.wait_for("you> ")
    terminal.type("/nonsense\n")
    assert "no command /nonsense" in terminal.wait_for("you> ")
    terminal.type(f"/save {tmp_path}/talk.jsonl\n")
    assert "saved 1 exchanges" in terminal.wait_for("you> ")
    (exchange,) = map(json.loads, (tmp_path / "talk.jsonl").read_text().splitlines())
    assert exchange["question"] == "What is 123 + 456?"
    assert len(exchange["attempts"]) == 3
    terminal.type("/reset\n")
    terminal.wait_for("forgotten")
    terminal.type("/again\n")
    terminal.wait_for("ask a question first")
    terminal.wait_for("you> ")
    terminal.interrupt_until("you> ")  # Ctrl-C at the prompt does not end the conversation
    while terminal.process.poll() is None:  # Ctrl-D does; one typed before the line editor listens is lost
        terminal.type("\x04")
        time.sleep(0.1)
    assert terminal.process.returncode == 0


def test_what_changed_is_shown_word_by_word():
    from scorefast.chat import changes

    text = changes("The answer is 404", "The answer is 414")
    assert text.plain.split() == ["change", "The", "answer", "is", "404", "414"]
    styles = {text.plain[s.start : s.end]: str(s.style) for s in text.spans}
    assert "red" in styles["404"]
    assert "green" in styles["414"]
    assert changes("a", "a").plain == "unchanged"


def test_control_sequences_of_a_model_reach_the_terminal_inert():
    from scorefast.report import printable

    assert printable("\x1b[31mred\x07\u202e 서울\n") == "\\x1b[31mred\\x07\\x202e 서울\n"
