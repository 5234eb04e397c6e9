"""score_loss.json, the tables made of it, and the figure."""

from __future__ import annotations

import importlib.metadata
import json
import math
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import cpu_name, gpu_names, markdown_table, write_page
from benchmarks.score_loss.contenders import CHECKED, CONTENDERS, FLOORS, KL_COEF

PACKAGES = ("torch", "triton", "trl", "unsloth_zoo", "liger-kernel", "cut-cross-entropy")
MIB = 1 << 20


def version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def environment(device: str) -> dict[str, Any]:
    """What every row says of the machine."""
    machine = gpu_names()[0] if device == "cuda" else cpu_name()
    return {"machine": machine, "threads": torch.get_num_threads(), "versions": {p: version(p) for p in PACKAGES}}


def load(results: Path) -> dict[str, Any]:
    path = results / "score_loss.json"
    found: dict[str, Any] = {"equality": {}, "rows": []}
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else found


def save(results: Path, key: dict[str, Any], new: dict[str, dict[str, Any]], equality: dict[str, Any]) -> None:
    """Merge: what a row says of the other kind of measurement stays; None takes a field away."""
    report = load(results)
    report["equality"].setdefault(key["device"], {}).update(equality)
    rows = {tuple(row[k] for k in (*key, "contender")): row for row in report["rows"]}
    for name, fields in new.items():
        row = rows.setdefault((*key.values(), name), {**key, "contender": name})
        row.update(fields)
        rows[*key.values(), name] = {k: v for k, v in row.items() if v is not None}
    lines = ",\n  ".join(json.dumps(row) for row in sorted(rows.values(), key=sort_key))
    text = f'{{\n "equality": {json.dumps(report["equality"])},\n "rows": [\n  {lines}\n ]\n}}'
    write_page(results / "score_loss.json", [text])


def sort_key(row: dict[str, Any]) -> tuple[Any, ...]:
    order = {name: i for i, name in enumerate(CONTENDERS)}
    return row["device"], row["shape"], row["dtype"], row["tokens"], order.get(row["contender"], len(order))


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Of one device, shape and dtype."""
    on_triton = any("scorefast triton" in row.get("ratios", {}) for row in rows)
    headings = ["N", "", "seconds", "scorefast chunked / it", *["scorefast triton / it"] * on_triton]
    headings += ["floor / it", "float32 floor / it", "peak MiB"]
    lines: list[list[str]] = []
    notes: dict[str, list[int]] = {}
    for row in rows:
        name, ratios = row["contender"], row.get("ratios", {})
        ce = name in CONTENDERS and CONTENDERS[name].ce
        cells = [str(row["tokens"]), name, f"{statistics.median(row['seconds']):.3g}" if "seconds" in row else "-"]
        chunked = ratios.get("scorefast chunked (CE only)" if ce else "scorefast chunked")
        triton = [None if ce else ratios.get("scorefast triton")] * on_triton
        cells += ["-" if ratio is None else f"{ratio:.2f}" for ratio in (chunked, *triton)]
        cells += [f"{100 * ratios[key]:.0f} %" if key in ratios and not ce else "-" for key in FLOORS]
        cells.append(f"{row['peak_bytes'] / MIB:,.0f}" if "peak_bytes" in row else "-")
        lines.append(cells)
        for kind in ("time", "peak"):
            if f"{kind}_reason" in row:
                notes.setdefault(f"{name}, {kind}: {row[f'{kind}_reason']}", []).append(row["tokens"])
    notes_of = [f"- {note} (N = {', '.join(map(str, tokens))})" for note, tokens in notes.items()]
    return [*markdown_table(headings, lines), "", *notes_of, *[""] * bool(notes_of)]


def report(results: Path, shape: str, dtype: str) -> None:
    measured = load(results)
    lines = ["# The fused loss: measurements", "", "Written by `python -m benchmarks score_loss report`. ", ""]
    lines[2] += "`a / it` is a's time over the contender's: below 1, a is faster. `peak` is beyond the inputs. "
    lines[2] += f"KL's coefficient is {KL_COEF}; CE only is one model, and compared with scorefast's CE."
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for row in sorted(measured["rows"], key=sort_key):
        groups.setdefault((row["device"], row["shape"], row["dtype"]), []).append(row)
    for (device, group_shape, group_dtype), rows in groups.items():
        where = sorted({f"{r['machine']}, {r['threads']} threads" for r in rows})
        lines += [f"## {group_shape}, {group_dtype}, {device}", "", f"{'; '.join(where)}.", "", *table(rows)]
    lines += ["## Largest relative differences from plain torch, float32", ""]
    for device, found in measured["equality"].items():
        lines += [f"On {device}, V = {CHECKED.vocabulary}, D = {CHECKED.width}, soft cap {CHECKED.softcap}:", ""]
        for name, result in found.items():
            values = [f"{key} {v if isinstance(v, str) else format(v, '.1e')}" for key, v in result.items()]
            lines.append(f"- {name}: {', '.join(values)}")
        lines.append("")
    versions = sorted({", ".join(f"{k} {v}" for k, v in row["versions"].items()) for row in measured["rows"]})
    lines += ["Versions:", "", *(f"- {v}" for v in versions), ""]
    write_page(results / "score_loss_tables.md", lines)
    print("\n".join(lines))
    rows = groups.get(("cpu", shape, dtype), [])
    if rows:
        figure(rows, f"{shape}, {dtype}, {rows[0]['threads']} CPU threads", results / "score_loss.png")


def figure(rows: list[dict[str, Any]], title: str, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import LogFormatter, NullFormatter

    fig, panels = plt.subplots(1, 2, figsize=(12, 5), layout="constrained")
    values: dict[str, Callable[[dict[str, Any]], float]] = {
        "peak memory beyond the inputs, MiB": lambda r: r["peak_bytes"] / MIB if "peak_bytes" in r else math.nan,
        "seconds, forward and backward": lambda r: statistics.median(r["seconds"]) if "seconds" in r else math.nan,
    }
    names = [n for n in CONTENDERS if any(r["contender"] == n and {"seconds", "peak_bytes"} & {*r} for r in rows)]
    ticks = sorted({row["tokens"] for row in rows})
    for panel, (label, value) in zip(panels, values.items(), strict=True):
        for i, name in enumerate(names):
            own = [row for row in rows if row["contender"] == name]
            style: dict[str, Any] = {"linestyle": ":" if name in FLOORS else "--" if CONTENDERS[name].ce else "-"}
            style |= {"linewidth": 3 if name.startswith("scorefast") else 1.5, "marker": "osD^vP*Xhpd"[i]}
            panel.plot([r["tokens"] for r in own], [value(r) for r in own], label=name, color=f"C{i % 10}", **style)
        panel.set(xlabel="tokens N", ylabel=label, xscale="log", yscale="log")
        panel.set_xticks(ticks, [str(t) for t in ticks])
        panel.xaxis.set_minor_formatter(NullFormatter())
        panel.yaxis.set_major_formatter(LogFormatter())
        panel.yaxis.set_minor_formatter(LogFormatter())
        panel.grid(alpha=0.3)
    handles, labels = panels[1].get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    fig.suptitle(title)
    fig.savefig(path, dpi=150)
