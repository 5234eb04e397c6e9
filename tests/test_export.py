"""What leaves is the checkpoint: its logits, its words between the turns, and nothing half-written."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import jinja2
import pytest
import torch
from peft import AutoPeftModelForCausalLM, PeftModel
from rich.console import Console
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from scorefast import train
from scorefast.data.load import load_dataset
from scorefast.errors import RunError, UserError
from scorefast.export import CONVERTER, export_checkpoint, export_recipe, modelfile, ollama_template
from scorefast.files.seal import seal
from scorefast.model.chat_format import ChatFormat
from scorefast.model.four_bit import nf4
from scorefast.model.load import load_merged, load_policy
from scorefast.model.policy import save_policy
from scorefast.recipe import load_recipe, model_path
from scorefast.runs.checkpoint import Checkpoint, open_checkpoint
from scorefast.runs.folder import start_run
from scorefast.runs.job import Job
from tests.conftest import QUICK, REPOSITORY, SHIPPED, scorefast
from tests.test_families import SMOLLM2
from tests.test_prompts import CHATML, CHATML_TOKENS, LLAMA3, LLAMA3_TOKENS, TOOL, byte_level

BASE = Path(model_path("tiny-gemma2"))
CORRECTION = 'Look again: is it {{ right }}?\nRewrite the """solution""".'
TOKENIZER_FILES = {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}
ADAPTER_FILES = {"adapter_config.json", "adapter_model.safetensors", *TOKENIZER_FILES}
MERGED_FILES = {"config.json", "generation_config.json", "model.safetensors", *TOKENIZER_FILES}
ONE_STEP = ["stage1.max_steps=1", "stage1.questions_per_step=2", "stage1.save_steps=1", "rollout.max_new_tokens=12"]
EAGER = {"attn_implementation": "eager"}  # what caps Gemma-2's attention, as the package does


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A real run's folder, its adapter then moved well away from the base."""
    recipe = load_recipe("tiny-cpu", [*ONE_STEP, f"prompt.correction={json.dumps(CORRECTION)}"])
    folder = tmp_path_factory.mktemp("runs") / "my run"
    folder.mkdir()
    start_run(folder, recipe, {})
    train.run(Job("stage1", recipe, load_dataset(str(SHIPPED), recipe.data), None, folder), Console(quiet=True))
    policy = load_policy(recipe, open_checkpoint(str(folder)), trainable=True)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in policy.model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.05)
    save_policy(policy, folder)
    seal(folder)
    return folder


@pytest.fixture(scope="module")
def ids(chat) -> torch.Tensor:
    reply = chat.reply("The answer is 579")
    return torch.tensor([chat.first_turn("What is 123 + 456?") + reply + chat.next_turn(reply)])


def logits(model, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=ids.to(model.device)).logits.float().cpu()


def gap(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """The largest difference, as a share of the largest logit."""
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def sums(adapter: Path, base: Path = BASE) -> dict[str, torch.Tensor]:
    """W + alpha / r * B A in float32, by the names of the base's weights."""
    weights, parts = load_file(base / "model.safetensors"), load_file(adapter / "adapter_model.safetensors")
    config = json.loads((adapter / "adapter_config.json").read_text())
    for name in [n for n in parts if n.endswith("lora_A.weight")]:
        own = name.removeprefix("base_model.model.").replace("lora_A.weight", "weight")
        b_a = parts[name.replace("lora_A", "lora_B")].float() @ parts[name].float()
        weights[own] = weights[own] + b_a * (config["lora_alpha"] / config["r"])
    return weights


# --- the adapter ------------------------------------------------------------------------------------------------------


def test_an_adapter_is_what_peft_loads_and_nothing_else(run, ids, tmp_path):
    assert names(run) >= {"metrics.jsonl", "curve.png", "checkpoint-1", "recipe.yaml"}
    notes: list[str] = []
    out = export_checkpoint(open_checkpoint(str(run)), "adapter", tmp_path / "out", notes.append)
    assert names(out) == ADAPTER_FILES
    assert str(BASE) in " ".join(notes), "no hub id: the base must be taken along"
    policy = load_policy(export_recipe(open_checkpoint(str(run))), open_checkpoint(str(run)))
    expected = logits(policy.model, ids)
    assert torch.equal(logits(AutoPeftModelForCausalLM.from_pretrained(out, **EAGER), ids), expected)
    base = AutoModelForCausalLM.from_pretrained(BASE, **EAGER)
    assert torch.equal(logits(PeftModel.from_pretrained(base, out), ids), expected)
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert ChatFormat(tokenizer).first_turn("1 + 1?") == policy.chat.first_turn("1 + 1?")


def test_a_hub_id_stays_and_its_sentencepiece_file_comes_along(run, tmp_path):
    """The id is found in a cache laid out as the hub's, in a process that reads that cache."""
    snapshot = tmp_path / "cache" / "models--some--tiny" / "snapshots" / ("0" * 40)
    shutil.copytree(BASE, snapshot)
    (snapshot / "tokenizer.model").write_bytes(b"pieces")
    (snapshot.parent.parent / "refs").mkdir()
    (snapshot.parent.parent / "refs" / "main").write_text("0" * 40)
    moved = tmp_path / "moved"
    shutil.copytree(run, moved)
    recipe = (moved / "recipe.yaml").read_text()
    (moved / "recipe.yaml").write_text(recipe.replace("name: tiny-gemma2\n", "name: some/tiny\n"))
    seal(moved)
    code = (
        "from pathlib import Path; from scorefast.export import export_checkpoint as export\n"
        "from scorefast.runs.checkpoint import open_checkpoint\n"
        "for format in ('adapter', 'merged-16bit'): export(open_checkpoint('moved'), format, Path(format), print)"
    )
    environment = {**os.environ, "HF_HUB_CACHE": str(tmp_path / "cache"), "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert json.loads((tmp_path / "adapter/adapter_config.json").read_text())["base_model_name_or_path"] == "some/tiny"
    assert names(tmp_path / "merged-16bit") == MERGED_FILES | {"tokenizer.model"}
    assert (tmp_path / "merged-16bit/tokenizer.model").read_bytes() == b"pieces"


# --- the merged model -------------------------------------------------------------------------------------------------


def test_merging_keeps_the_logits(run, ids, tmp_path):
    checkpoint = open_checkpoint(str(run))
    recipe = export_recipe(checkpoint)
    adapter = logits(load_policy(recipe, checkpoint).model, ids)
    assert gap(logits(load_merged(recipe, checkpoint), ids), adapter) < 1e-5
    out = export_checkpoint(checkpoint, "merged-16bit", tmp_path / "out", pytest.fail)
    merged = AutoModelForCausalLM.from_pretrained(out, dtype="auto", **EAGER)
    assert merged.dtype == torch.bfloat16
    rounding = gap(logits(merged.float(), ids), adapter)
    assert rounding < 2**-8, "a bfloat16 has 8 bits"
    assert gap(logits(load_policy(recipe).model, ids), adapter) > 20 * rounding, "the merge has an effect"


def test_a_merged_folder_is_a_whole_model_that_ends_its_turns(run, chat, tmp_path):
    out = export_checkpoint(open_checkpoint(str(run)), "merged-16bit", tmp_path / "new" / "out", pytest.fail)
    assert names(out) == MERGED_FILES
    for name, weight in sums(run).items():
        assert torch.equal(load_file(out / "model.safetensors")[name], weight.bfloat16()), f"{name} is rounded once"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(out, **EAGER), AutoTokenizer.from_pretrained(out)
    assert set(model.generation_config.eos_token_id) == chat.end_tokens
    prompt = torch.tensor([chat.first_turn("What is 123 + 456?")])
    reply = model.generate(prompt, max_new_tokens=60)[0, prompt.shape[1] :].tolist()
    assert reply[-1] in chat.end_tokens
    assert tokenizer.get_chat_template() == chat.tokenizer.get_chat_template()


def test_a_four_bit_run_is_merged_into_the_sixteen_bit_base(ids, tmp_path):
    """Trained through Unsloth, which notes a base and an adapter of its own kind."""
    flags = [*QUICK, *(f for s in [*ONE_STEP, "stage1.learning_rate=0.05"] for f in ("--set", s))]
    flags += ["--set", "model.backend=unsloth", "--set", "model.load_in_4bit=true", "--out", "run"]
    done = scorefast("stage1", "--data", SHIPPED, *flags, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    checkpoint, notes = open_checkpoint(str(tmp_path / "run")), []
    out = export_checkpoint(checkpoint, "merged-16bit", tmp_path / "merged", notes.append)
    assert len(notes) == 1
    assert "4-bit" in notes[0]
    assert not export_recipe(checkpoint).model.load_in_4bit, "no bitsandbytes where one only exports"
    merged, base = load_file(out / "model.safetensors"), load_file(BASE / "model.safetensors")
    expected = sums(tmp_path / "run")
    assert merged.keys() == expected.keys()
    for name, weight in expected.items():
        assert torch.equal(merged[name], weight.bfloat16()), name
    assert any(not torch.equal(merged[name], weight.bfloat16()) for name, weight in base.items())
    adapter = export_checkpoint(checkpoint, "adapter", tmp_path / "adapter", notes.append)
    assert names(adapter) == ADAPTER_FILES
    loaded = AutoPeftModelForCausalLM.from_pretrained(adapter, **EAGER)
    assert gap(logits(loaded, ids), logits(load_merged(export_recipe(checkpoint), checkpoint), ids)) < 1e-5


def test_a_fully_tuned_model_is_saved_in_sixteen_bit(tmp_path):
    recipe = load_recipe("tiny-cpu", ["model.tuning=full"])
    policy = load_policy(recipe, trainable=True)
    with torch.no_grad():
        policy.model.model.layers[0].mlp.up_proj.weight.mul_(1.5)
    (tmp_path / "run").mkdir()
    start_run(tmp_path / "run", recipe, {})
    save_policy(policy, tmp_path / "run")
    seal(tmp_path / "run")
    checkpoint = open_checkpoint(str(tmp_path / "run"))
    with pytest.raises(UserError, match="merged-16bit"):
        export_checkpoint(checkpoint, "adapter", tmp_path / "out", pytest.fail)
    out = export_checkpoint(checkpoint, "merged-16bit", tmp_path / "out", pytest.fail)
    assert names(out) == MERGED_FILES
    saved, own = load_file(out / "model.safetensors"), load_file(tmp_path / "run/model.safetensors")
    assert saved.keys() == own.keys()
    assert all(torch.equal(saved[name], weight.bfloat16()) for name, weight in own.items())


def test_nothing_is_merged_into_quantized_weights(run, tmp_path):
    pytest.importorskip("bitsandbytes")
    base = tmp_path / "base-4bit"
    shutil.copytree(BASE, base)
    AutoModelForCausalLM.from_pretrained(BASE, quantization_config=nf4(torch.float32)).save_pretrained(base)
    checkpoint = open_checkpoint(str(run))
    recipe = checkpoint.recipe.model_copy(
        update={"model": checkpoint.recipe.model.model_copy(update={"name": str(base)})}
    )
    with pytest.raises(UserError, match=r"quantized; .*model\.name"):
        export_checkpoint(replace(checkpoint, recipe=recipe), "merged-16bit", tmp_path / "out", pytest.fail)
    assert not (tmp_path / "out").exists()


# --- GGUF, with a stand-in for llama.cpp's converter ------------------------------------------------------------------


def converter(folder: Path, code: str) -> Path:
    (folder / CONVERTER).write_text(f"import json, os, sys\nfrom pathlib import Path\n{code}\n")
    return folder


@pytest.fixture(scope="module")
def gguf(run, tmp_path_factory) -> Path:
    """An export by a converter that writes down what it was given."""
    folder = tmp_path_factory.mktemp("gguf")
    given = (
        "model = Path(sys.argv[1])\n"
        "given = {'argv': sys.argv, 'python': sys.executable, 'offline': os.environ['HF_HUB_OFFLINE'],\n"
        "         'files': os.listdir(model), 'tokenizer': json.loads((model / 'tokenizer_config.json').read_text())}\n"
        "Path(sys.argv[sys.argv.index('--outfile') + 1]).write_text('GGUF' + json.dumps(given))"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLAMA_CPP", str(converter(folder, given)))
        return export_checkpoint(open_checkpoint(str(run)), "gguf", folder / "out", pytest.fail)


def test_the_converter_gets_the_merged_folder(gguf):
    assert names(gguf) == {"my-run.gguf", "Modelfile"}
    given = json.loads((gguf / "my-run.gguf").read_text().removeprefix("GGUF"))
    assert given["python"] == sys.executable
    assert given["offline"] == "1"
    assert set(given["files"]) == MERGED_FILES
    assert given["argv"][given["argv"].index("--outtype") + 1] == "bf16"
    assert given["tokenizer"]["add_bos_token"] is True


def test_the_modelfile_decodes_as_eval_does_and_explains_the_second_turn(gguf):
    text = (gguf / "Modelfile").read_text()
    comments = [line for line in text.splitlines() if line.startswith("#")]
    rest = re.sub(
        r'TEMPLATE """.*?"""\n', "", "\n".join(li for li in text.splitlines() if li not in comments) + "\n", flags=re.S
    )
    assert rest.splitlines() == [
        "FROM ./my-run.gguf",
        'PARAMETER stop "<eos>"',
        'PARAMETER stop "<end_of_turn>"',
        "PARAMETER temperature 0",
        "PARAMETER repeat_penalty 1",
        "PARAMETER num_ctx 512",
    ]
    assert "second message:\n#\n" + "".join(f"#     {line}\n" for line in CORRECTION.splitlines()) in text


def test_a_converter_is_found_on_path(run, tmp_path, monkeypatch):
    converter(tmp_path, "sys.exit('found')")
    (tmp_path / CONVERTER).chmod(0o755)
    monkeypatch.delenv("LLAMA_CPP", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="found"):
        export_checkpoint(open_checkpoint(str(run)), "gguf", tmp_path / "out", pytest.fail)


@pytest.mark.parametrize("named", [None, "nowhere"])
def test_a_missing_converter_is_one_line_before_anything_is_loaded(named, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("LLAMA_CPP", raising=False)
    if named:
        monkeypatch.setenv("LLAMA_CPP", named)
    nothing = Checkpoint("x", tmp_path / "no model", True, "no/such-model", None)  # to load it would fail otherwise
    with pytest.raises(UserError) as error:
        export_checkpoint(nothing, "gguf", tmp_path / "out", pytest.fail)
    line = str(error.value)
    assert "\n" not in line
    assert CONVERTER in line
    assert ("LLAMA_CPP=nowhere: has no" in line) == bool(named)
    assert "git clone --depth 1 https://github.com/ggml-org/llama.cpp" in line
    assert line.endswith(
        f"LLAMA_CPP=llama.cpp scorefast export '{tmp_path}/no model' --format gguf --out {tmp_path}/out"
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("print('INFO'); print('ValueError: no such family', file=sys.stderr); print(); sys.exit(1)", "no such family"),
        (
            "Path(sys.argv[sys.argv.index('--outfile') + 1]).write_text('half'); sys.exit(3)",
            r"code 3\): it printed nothing",
        ),
        ("print('done')", "done"),  # and wrote nothing
        ("Path(sys.argv[sys.argv.index('--outfile') + 1]).touch(); print('x' * 9999)", r"code 0\): x{297}\.\.\.$"),
    ],
)
def test_a_failing_converter_leaves_nothing(run, code, said, tmp_path, monkeypatch):
    monkeypatch.setenv("LLAMA_CPP", str(converter(tmp_path, code)))
    (tmp_path / "empty").mkdir()
    for out in (tmp_path / "new" / "out", tmp_path / "empty"):
        with pytest.raises(UserError, match=said) as error:
            export_checkpoint(open_checkpoint(str(run)), "gguf", out, pytest.fail)
        assert "\n" not in str(error.value)
    assert names(tmp_path) == {CONVERTER, "empty"}
    assert not names(tmp_path / "empty")


def test_a_full_disk_is_one_line_that_names_the_folder(run, tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    for kind in ("merged-16bit", "adapter"):
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
            with pytest.raises(RunError, match="new/out: not written: ") as error:
                export_checkpoint(open_checkpoint(str(run)), kind, tmp_path / "new" / "out", lambda _: None)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert "\n" not in str(error.value)
        assert not names(tmp_path), "nothing is left"


def test_who_ends_an_export_ends_its_converter_too(run, tmp_path):
    """And leaves nothing. What a kill leaves is named by the next one."""
    slow = "print(os.getpid(), file=open(Path(__file__).parent / 'pid', 'w'), flush=True); import time; time.sleep(99)"
    export = [sys.executable, "-m", "scorefast", "export", run, "--format", "gguf", "--out", tmp_path / "out"]
    for signum, code in ((signal.SIGTERM, 143), (signal.SIGKILL, -signal.SIGKILL)):
        (tmp_path / "pid").unlink(missing_ok=True)
        environment = os.environ | {"LLAMA_CPP": str(converter(tmp_path, slow))}
        with subprocess.Popen(list(map(str, export)), cwd=REPOSITORY, env=environment, stderr=subprocess.PIPE) as child:
            pid = tmp_path / "pid"
            while not (pid.is_file() and pid.read_text().endswith("\n")):
                assert child.poll() is None, child.stderr.read()
                time.sleep(0.05)
            child.send_signal(signum)
            assert child.wait(60) == code
        if signum == signal.SIGTERM:
            assert names(tmp_path) == {CONVERTER, "pid"}
            with pytest.raises(ProcessLookupError):
                os.kill(int(pid.read_text()), 0)
    os.kill(int(pid.read_text()), signal.SIGKILL)
    with pytest.raises(UserError, match=r"what a killed export left behind, .*/out/\.partial; remove that"):
        export_checkpoint(open_checkpoint(str(run)), "adapter", tmp_path / "out", lambda _: None)


def test_an_error_while_files_are_moved_moves_them_back(run, tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    rename, moved = Path.rename, []

    def twice(path, target):
        if len(moved) == 2 and path.parent.name == ".partial":
            raise OSError(28, "No space left on device")
        moved.append(target)
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", twice)
    with pytest.raises(RunError, match="out: not written: No space left on device"):
        export_checkpoint(open_checkpoint(str(run)), "adapter", tmp_path / "out", lambda _: None)
    assert len(moved) == 4, "two there, and two back"
    assert not names(tmp_path / "out")


@pytest.mark.parametrize("there_before", [True, False])
def test_a_failed_export_removes_what_it_made_and_nothing_else(run, tmp_path, monkeypatch, there_before):
    """A finished one beside it, or a file that was put into the folder meanwhile, stays."""
    out = tmp_path / "models/a"
    if there_before:
        out.mkdir(parents=True)

    def fail(path, target):
        neighbour = out / "mine" if there_before else out.parent / "b"
        neighbour.write_text("precious")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", fail)
    with pytest.raises(RunError, match="models/a: not written: No space left on device"):
        export_checkpoint(open_checkpoint(str(run)), "adapter", out, lambda _: None)
    assert [p.name for p in (tmp_path / "models").iterdir()] == ["a" if there_before else "b"]
    assert [p.name for p in (tmp_path / "models").rglob("*") if p.is_file()] == ["mine" if there_before else "b"]


def test_a_folder_with_files_is_refused(run, tmp_path):
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path, tmp_path / "file"):
        with pytest.raises(UserError, match="already holds files; name a new or empty folder"):
            export_checkpoint(open_checkpoint(str(run)), "adapter", out, pytest.fail)
    assert (tmp_path / "file").read_text() == "mine"
    assert names(tmp_path) == {"file"}


def test_a_folder_that_cannot_be_made_is_one_line(run, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="cannot be created"):
        export_checkpoint(open_checkpoint(str(run)), "adapter", tmp_path / "file" / "out", lambda _: None)
    assert names(tmp_path) == {"file"}


def test_a_checkpoint_inside_a_run_has_the_runs_recipe(run, tmp_path):
    inside = export_recipe(open_checkpoint(str(run / "checkpoint-1")))
    assert inside == export_recipe(open_checkpoint(str(run)))
    assert inside.prompt.correction == CORRECTION
    foreign = tmp_path / "foreign"
    export_checkpoint(open_checkpoint(str(run)), "adapter", foreign, lambda _: None)
    assert export_recipe(open_checkpoint(str(foreign))).model.name == str(BASE), "without a recipe, the adapter's base"


# --- the chat template in Go's syntax ---------------------------------------------------------------------------------

ODD = CHATML.replace("You are a helpful assistant.", 'Say \\"\\"\\"{{ no }}\\"\\"\\" {{ "twice" }}.')
# One brace before a message and many elsewhere, quotes in every number, and directives of a Modelfile's own.
BRACES = (
    '{{ \'Say { {{ {{{ }}} """" "" " \n"""\nSYSTEM evil\nADAPTER x\n\' }}{% for message in messages %}'
    "{{ '<|im_start|>' + message['role'] + '\n' + ('\"{' if message['role'] == 'user' else '') + message['content'] }}"
    "{{ '<|im_end|>}\"\"\"{{{\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def llama3():
    return byte_level(LLAMA3, LLAMA3_TOKENS, [], bos_token="<|begin_of_text|>", eos_token="<|end_of_text|>")


def chatml(template):
    return byte_level(template, CHATML_TOKENS, TOOL, bos_token="<|im_start|>", eos_token="<|im_end|>")


TOKENIZERS = {
    "gemma-2": lambda: AutoTokenizer.from_pretrained(BASE),
    "llama-3": llama3,
    "qwen2.5": lambda: chatml(CHATML),
    "smollm2": lambda: chatml(SMOLLM2),
    "odd": lambda: chatml(ODD),
    "braces": lambda: chatml(BRACES),
}


def rendered(text: str, messages: list[dict[str, str]]) -> str:
    """A Modelfile's template with these messages: the few actions of Go's language that it has, said in Jinja's."""
    (template,) = re.findall(r'^TEMPLATE """(.*?)"""$', text, flags=re.S | re.M)
    begun: list[str] = []

    def translate(found: re.Match[str]) -> str:
        action = found[1].replace("$", "go.").replace(".Role", "m.role").replace(" .Content ", "m.content")
        action = re.sub(r"eq (\S+) (\S+)", r"\1 == \2", action).replace("else if", "elif").strip()
        if action == "range .Messages":
            action = "for m in messages"
        keyword = action.split()[0]
        if keyword in ("for", "if"):
            begun.append(keyword)
        elif keyword == "end":
            action = f"end{begun.pop()}"
        elif keyword.startswith("go."):
            action = f"set {action.replace(':', '')}"
        elif keyword not in ("else", "elif"):
            return f"{{{{ {action} }}}}"
        return f"{{% {action} %}}"

    jinja = "{% set go = namespace() %}" + re.sub(r'\{\{( "[^"]*" | [^"}]*(?:"\w+" )?)\}\}', translate, template)
    return jinja2.Environment(keep_trailing_newline=True).from_string(jinja).render(messages=messages)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_the_modelfiles_template_is_the_models_own(name, recipe):
    tokenizer = TOKENIZERS[name]()
    chat = ChatFormat(tokenizer, recipe.prompt.correction)
    template, adds_bos = ollama_template(chat)
    assert adds_bos == (name in ("gemma-2", "llama-3"))
    text = modelfile("x", template, chat, recipe)
    turns = ["What is 1 + 2?", "The answer is {{ 4 }}", chat.correction, "No, 3", "Sure?"]
    messages = [{"role": "assistant" if i % 2 else "user", "content": turn} for i, turn in enumerate(turns)]
    for length in (1, 3, 5):
        expected = tokenizer.apply_chat_template(messages[:length], tokenize=False, add_generation_prompt=True)
        ours = (tokenizer.bos_token if adds_bos else "") + rendered(text, messages[:length])
        assert ours == expected
    system = [{"role": "system", "content": "Be brief."}]
    assert rendered(text, system + messages) == rendered(text, messages), "as trained, whatever stands before"


def directives(text: str) -> list[tuple[str, str]]:
    """As Ollama reads a Modelfile: a value that begins with quotes goes on, over lines, until it ends with as many."""
    found, lines = [], iter(text.split("\n"))
    for line in lines:
        name, _, value = line.partition(" ")
        if name == "PARAMETER":
            key, _, value = value.partition(" ")
            name = f"{name} {key}"
        quote = next((q for q in ('"""', '"') if value.startswith(q)), "")
        while quote and not (len(value) >= 2 * len(quote) and value.endswith(quote)):
            value += "\n" + next(lines)
        if line and not line.startswith("#"):
            found.append((name, value.removeprefix(quote).removesuffix(quote)))
    return found


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_template_adds_no_directive_and_begins_no_action(name, recipe):
    chat = ChatFormat(TOKENIZERS[name](), recipe.prompt.correction)
    template, _ = ollama_template(chat)
    found = directives(modelfile("x", template, chat, recipe))
    stops = ["PARAMETER stop"] * len(chat.end_tokens)
    numbers = [f"PARAMETER {key}" for key in ("temperature", "repeat_penalty", "num_ctx")]
    assert [key for key, _ in found] == ["FROM", "TEMPLATE", *stops, *numbers]
    assert found[1][1] == template
    plain = re.sub(r'\{\{ "[^"]*" \}\}', "", template)
    assert not re.search(r'\{\{(?! )|"""', plain), "an action of Go's begins with two braces, and ours then a space"


@pytest.mark.parametrize(
    "end", ['<e"nd>', '""<end>', '<end>"\nSYSTEM evil\nPARAMETER stop "x', "<end>\nADAPTER x", "<e\rnd>"]
)
def test_a_closing_token_that_a_modelfile_cannot_hold_is_refused_before_a_model_loads(end, tmp_path, monkeypatch):
    base = tmp_path / "base"
    template = CHATML.replace("<|im_end|>", end.replace('"', '\\"').replace("\n", "\\n").replace("\r", "\\r"))
    byte_level(template, ["<|endoftext|>", "<|im_start|>", end], TOOL, eos_token=end).save_pretrained(base)
    shutil.copy(BASE / "config.json", base)
    monkeypatch.setenv("LLAMA_CPP", str(converter(tmp_path, "sys.exit(1)")))
    recipe = load_recipe("tiny-cpu", [f"model.name={base}"])
    with pytest.raises(UserError, match="ends a reply of this model and cannot be written in a Modelfile") as error:
        export_checkpoint(Checkpoint("x", tmp_path, True, str(base), recipe), "gguf", tmp_path / "out", pytest.fail)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_a_template_that_writes_the_place_of_a_message_itself_is_refused(recipe):
    chat = ChatFormat(chatml(CHATML.replace("You are Qwen", "{{ .Content }}")), recipe.prompt.correction)
    with pytest.raises(UserError, match=r"writes '\{\{ \.Content \}\}' itself; use --format merged-16bit"):
        ollama_template(chat)
