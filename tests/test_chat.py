"""The conversation on a terminal of its own."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time

import pytest

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
    assert "saved 1 exchange to" in terminal.wait_for("you> ")
    (exchange,) = map(json.loads, (tmp_path / "talk.jsonl").read_text().splitlines())
    assert exchange["question"] == "What is 123 + 456?"
    assert len(exchange["attempts"]) == 3
    terminal.type("/reset\n")
    terminal.wait_for("record cleared")
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


@pytest.fixture(scope="module")
def policy(recipe):
    from scorefast.model.load import load_policy

    return load_policy(recipe)


def test_a_line_without_an_end_is_refused_and_the_next_one_answered(policy, recipe):
    """100 MB, of which 51,200 characters could be a question: memory holds no more of it than that, the reply less."""
    from scorefast.chat import pipe

    class Stream(io.StringIO):
        """100 lines' worth of x without an end, then a question; counts what is asked for at once."""

        left, most = 100_000_000, 0

        def readline(self, size=-1):
            Stream.most = max(Stream.most, size if size >= 0 else 10**9)
            if self.left:
                taken = min(size, self.left)
                Stream.left = self.left = self.left - taken
                return "x" * taken if self.left else "x" * (taken - 1) + "\n"
            return super().readline(size)

    out = io.StringIO()
    pipe(policy, recipe, Stream("What is 1 + 2?\n" + "y " * 25_600 + "\nWhat is 3 + 4?"), out)
    refused, answered, unfit, last = map(json.loads, out.getvalue().splitlines())
    assert (
        refused["error"]
        == "a question has at most 51200 characters (100 for each of model.max_seq_length = 512 tokens)"
    )
    assert set(refused["question"]) == {"x", "."}
    assert len(refused["question"]) <= 300
    assert "exceed model.max_seq_length" in unfit["error"], "51,199 characters are tokenised"
    assert [len(exchange["attempts"]) for exchange in (answered, last)] == [2, 2]
    assert Stream.most <= 51_202


@pytest.mark.parametrize("most", range(1, 9))
def test_lines_are_cut_and_nothing_of_the_rest_comes_again(most):
    from scorefast.chat import truncated_lines

    lines = ["\n", "ab\n", "", "abcde\n", "x\n", "abcdef"]
    found = list(truncated_lines(io.StringIO("".join(lines)), most))
    assert found == [line[:most] for line in lines if line]


def test_a_pipe_is_answered_line_by_line(tmp_path):
    """No prompt, and no wait for more than the line that was sent."""
    command = [sys.executable, "-m", "scorefast", "chat", "--quiet"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=tmp_path)
    with process:
        for question in (b"What is 1 + 2?", b"\xff \x1b[31m", b"\0"):
            process.stdin.write(question + b"\n")
            process.stdin.flush()
            assert select.select([process.stdout], [], [], 120)[0]
            assert len(json.loads(process.stdout.readline())["attempts"]) == 2
        process.stdin.close()
        assert process.stdout.read() == b""
    assert process.returncode == 0


def shown(act) -> str:
    from scorefast.ui.console import InertConsole

    stream = io.StringIO()
    act(InertConsole(file=stream, force_terminal=True, color_system=None, width=400))
    return stream.getvalue()


def test_a_saved_conversation_is_private_and_replaces_nothing(tmp_path):
    from scorefast.chat import Exchange, _save

    record = [Exchange("What is 1 + 2? \udc80", ["3", "4"])]
    before = os.umask(0)
    try:
        assert "utf-8" in shown(lambda console: _save(record, f"{tmp_path}/talk", console))
        assert not list(tmp_path.iterdir()), "nothing half written stays"
        record[0].question = "What is 1 + 2?"
        assert "saved 1 exchange to" in shown(lambda console: _save(record, f"{tmp_path}/talk", console))
    finally:
        os.umask(before)
    assert (tmp_path / "talk").stat().st_mode & 0o777 == 0o600
    content = (tmp_path / "talk").read_bytes()
    (tmp_path / "link").symlink_to(tmp_path / "absent")
    for name, reason in {
        f"{tmp_path}/talk": "File exists",
        f"{tmp_path}/link": "File exists",
        f"{tmp_path}/no/talk": "No such file",
        f"{tmp_path}": "File exists",
        "~nobody-of-that-name/talk": "home directory",
        f"{tmp_path}/\0": "null",
        f"{tmp_path}/{'x' * 300}": "File name too long",
    }.items():
        assert reason in shown(lambda console, name=name: _save([], name, console)), name
    assert (tmp_path / "talk").read_bytes() == content
    assert {path.name for path in tmp_path.iterdir()} == {"talk", "link"}


def test_every_string_on_a_console_is_text():
    """What the commands print is made of names that others gave: of files, columns, models, checkpoints."""
    from scorefast.chat import Responder, _handle, changes
    from scorefast.stats import Result
    from scorefast.ui.tables import results_table

    evil = "\x1b]0;title\x07\x1b[2J\u202e\udc80[bold]name[/bold]\r"
    inert = r"\x1b]0;title\x07\x1b[2J\x202e\xdc80[bold]name[/bold]\x0d"
    assert inert in shown(lambda console: console.print(evil))
    assert inert in shown(lambda console: console.print(changes("a", evil)))
    assert "no command /\\x1b[2J:" in shown(lambda console: _handle("/\x1b[2J", None, [], console))  # type: ignore[arg-type]

    class Echo(Responder):
        def __init__(self):
            pass

        def ask(self, exchange, on_text=None):
            exchange.attempts.append(evil)
            on_text(evil, False)

        correct = ask

    seen = shown(lambda console: _handle("question", Echo(), [], console))
    assert seen.count(inert) == 2
    assert not set(seen) & set("\x1b\x07\r\u202e")
    interval = (0.0, 1.0)
    rates = ("acc_t1", "acc_t2", "delta", "delta_i2c", "delta_c2i")
    result = Result(evil, *[0.0] * 5, 1, dict.fromkeys(rates, interval), 1.0, 0.0, 0.0)
    assert inert in shown(lambda console: console.print(results_table([result], "test")))


def test_control_sequences_of_a_model_reach_the_terminal_inert():
    from scorefast.files.text import printable

    assert printable("\x1b[31mred\x07\u202e 서울\n") == "\\x1b[31mred\\x07\\x202e 서울\n"
