"""A run knows its data, and what a model has positions for. Oracle: the lines, written out here."""

import dataclasses
import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT, tiny_llama, tiny_tokenizer
from safetensors.torch import load_file, save_file
from test_sdft import flags

import sdft
import support.plan
from config import Config
from data import Example, encode_pairs, leave_out_beyond_positions, load_splits, load_task
from support.models import load_model
from support.run import check_positions, check_same_data, digest_files, drop_later_answers

SHORT = (
    "--task medical --preset laptop --batch-size 2 --steps 4 --save-every 2 --keep-last 9 "
    "--eval-every 0 --sample-every 0 --general-tokens 4 --max-new-tokens 6 --warmup 0 "
    "--eval-examples 2 --max-prompt-tokens 900 --max-teacher-prompt-tokens 1500 --force"
).split()


@pytest.fixture
def stopped_run(tiny_folder, tmp_path):
    """A run with a checkpoint of step 2 of 4, its data beside it."""
    data, run = tmp_path / "data", tmp_path / "run"
    shutil.copytree(ROOT / "samples" / "medical", data)
    sdft.main([*SHORT, "--data", str(data), "--model", str(tiny_folder), "--output", str(run)])
    shutil.rmtree(run / "checkpoint-000004")
    return data, run


def rewrite(file, change):
    lines = file.read_text(encoding="utf-8").splitlines()
    file.write_text("\n".join(change(lines)) + "\n", encoding="utf-8")


@pytest.mark.parametrize("name", ["train.jsonl", "validation.jsonl", "test.jsonl"])
def test_a_changed_file_stops_the_resumed_run_by_name(stopped_run, name):
    data, run = stopped_run
    original = (data / name).read_text(encoding="utf-8")
    rewrite(data / name, lambda lines: lines[1:])
    with pytest.raises(SystemExit, match=f"{name} has changed since this run began"):
        sdft.main(["--resume", str(run)])
    (data / name).write_text(original, encoding="utf-8")
    sdft.main(["--resume", str(run)])
    assert (run / "checkpoint-000004").is_dir()


def test_a_set_of_questions_that_is_gone_stops_the_resumed_run(tiny_folder, tmp_path):
    data, run = tmp_path / "data", tmp_path / "run"
    shutil.copytree(ROOT / "samples" / "science", data)
    more = {"data": data, "steps": 4, "save_every": 2, "keep_last": 9, "eval_every": 0}
    sdft.main(flags(tiny_folder, run, **more))
    shutil.rmtree(run / "checkpoint-000004")
    (data / "test_new_stems.jsonl").unlink()
    with pytest.raises(SystemExit, match="test_new_stems.jsonl is gone since this run began"):
        sdft.main(["--resume", str(run)])


@pytest.mark.parametrize("trained_on", ["knowledge", "general"])
def test_a_report_of_the_training_file_hides_no_change(trained_on):
    """Of knowledge it is a part of train.jsonl; re-invocation trains on another train.jsonl."""

    def digests(*, trained=0, reported=0):
        """Of a run whose trained, or reported, rows end in a row that differs."""
        config = Config(task="knowledge", eval_examples=2, max_new_tokens=8)
        splits = load_splits(config)
        if trained_on == "general":
            splits.train = load_task("general", "train")
        wordings = splits.reports["trained wordings"]
        for rows, changed in ((splits.train, trained), (wordings, reported)):
            rows[-1] = dataclasses.replace(rows[-1], messages=rows[-1].messages * (1 + changed))
        return digest_files(splits)

    before = digests()
    with pytest.raises(ValueError, match="train.jsonl has changed since this run began"):
        check_same_data(before, digests(trained=1))
    if trained_on == "general":
        with pytest.raises(ValueError, match="^train.jsonl has changed since this run began"):
            check_same_data(before, digests(reported=1))
    check_same_data(before, digests())


def test_another_chat_template_stops_the_resumed_run(stopped_run, tmp_path):
    _, run = stopped_run
    state = run / "checkpoint-000002" / "state.json"
    saved = json.loads(state.read_text())
    model = tmp_path / "model"
    shutil.copytree(saved["config"]["model"], model)
    template = model / "chat_template.jinja"
    template.write_text(template.read_text().replace("<|im_end|>\n", "<|im_end|>\n\n"))
    saved["config"]["model"] = str(model)
    state.write_text(json.dumps(saved))
    with pytest.raises(SystemExit, match="encoded differently"):
        sdft.main(["--resume", str(run)])


def test_a_resumed_run_has_no_answer_twice(tmp_path):
    file = tmp_path / "answers.jsonl"
    whens = ["before", "step 2", "step 4", "step 4", "last", "best"]
    lines = [json.dumps({"when": when, "id": "a"}) + "\n" for when in whens]
    file.write_text("".join(lines) + '{"when": "st')
    drop_later_answers(file, 2)
    assert file.read_text() == "".join(lines[:2])


def test_a_resumed_run_that_does_not_fit_is_offered_what_may_change(stopped_run, monkeypatch):
    _, run = stopped_run
    monkeypatch.setattr(support.plan, "free_bytes", lambda *_: {"host": 1})
    with pytest.raises(SystemExit, match="does not fit: .* Make room, .*--ignore-plan tries"):
        sdft.main(["--resume", str(run)])
    sdft.main(["--resume", str(run), "--ignore-plan"])
    assert (run / "checkpoint-000004").is_dir()


@pytest.mark.parametrize("character", ["\u2028", "\u2029", "\x85"])
def test_an_answer_may_hold_what_unicode_calls_a_line_end(character, tmp_path):
    """JSON leaves these in a string as they are."""
    file = tmp_path / "answers.jsonl"
    answer = {"when": "before", "text": f"one{character}two"}
    line = json.dumps(answer, ensure_ascii=False) + "\n"
    file.write_text(line, encoding="utf-8")
    drop_later_answers(file, 2)
    assert character in line and file.read_text(encoding="utf-8") == line


def examples(*questions):
    return [
        Example(f"q{i}", "medical", [{"role": "user", "content": text}], demonstration="Yes.")
        for i, text in enumerate(questions)
    ]


def test_rows_beyond_the_models_positions_are_left_out_by_name(capsys):
    """One byte is one token; the longest prompt is the teacher's."""
    tokenizer = tiny_tokenizer()
    config = Config(max_new_tokens=10, max_prompt_tokens=5000, max_teacher_prompt_tokens=5000)
    rows = examples("Why?", "Why " * 30)
    short, long = encode_pairs(tokenizer, rows, config)
    fits = len(long.teacher_prompt) + 10
    assert len(encode_pairs(tokenizer, rows, config, positions=fits)) == 2
    assert encode_pairs(tokenizer, rows, config, positions=fits - 1) == [short]
    assert "left out: q1" in capsys.readouterr().out
    checked = tokenizer, rows, config
    assert leave_out_beyond_positions(*checked, fits, has_teacher=True) == rows
    assert leave_out_beyond_positions(*checked, fits - 1, has_teacher=True) == rows[:1]
    assert "positions: q1" in capsys.readouterr().out
    student_fits = len(long.student_prompt) + 10
    assert leave_out_beyond_positions(*checked, student_fits, has_teacher=False) == rows
    with pytest.raises(ValueError, match="q0, q1"):
        leave_out_beyond_positions(*checked, 20, has_teacher=False)


def test_general_prompts_beyond_the_models_positions_are_left_out_by_name(
    tiny_folder, tmp_path, capsys
):
    """3000 bytes are 3000 tokens, of 2048; with --too-long stop nothing is trained."""
    prompts = [{"id": "short", "prompt": "Why?"}, {"id": "long", "prompt": "Why? " * 600}]
    file = tmp_path / "general.jsonl"
    file.write_text("\n".join(map(json.dumps, prompts)))
    more = {"general_data": file, "steps": 1, "eval_every": 0}
    sdft.main(flags(tiny_folder, tmp_path / "run", **more))
    left_out = "prompt and 4 new tokens exceed the model's 2048 positions: long"
    assert f"left out of drift: {left_out}\n" in capsys.readouterr().out
    with pytest.raises(SystemExit, match=f"^error: {left_out}. Shorten .* --general-tokens$"):
        sdft.main(flags(tiny_folder, tmp_path / "other", too_long="stop", **more))


def test_an_answer_as_long_as_the_positions_is_refused_before_the_model_loads():
    model_config = tiny_llama().config
    model_config.max_position_embeddings = 64
    check_positions(model_config, Config(max_new_tokens=63))
    with pytest.raises(ValueError, match="--max-new-tokens is 64, and .* has 64 positions"):
        check_positions(model_config, Config(max_new_tokens=64))
    with pytest.raises(ValueError, match="--eval-new-tokens is 70"):
        check_positions(model_config, Config(max_new_tokens=8, eval_new_tokens=70))


@pytest.mark.parametrize("same", [False, True])
def test_a_tied_config_with_another_output_matrix_is_refused(same, tiny_folder, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(tiny_folder, folder)
    weights = load_file(folder / "model.safetensors")
    embeddings = weights["model.embed_tokens.weight"]
    weights["lm_head.weight"] = embeddings.clone() if same else torch.randn_like(embeddings)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    if same:  # the same matrix stored twice is no contradiction
        load_model(str(folder))
        return
    with pytest.raises(ValueError, match="ties the embeddings .* has another output matrix"):
        load_model(str(folder))


def test_a_console_that_lacks_a_character_prints_a_question_mark(tmp_path):
    """Oracle: the bytes of a console in cp1252, which has no Japanese."""
    import io

    from support import console

    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="cp1252")
    real = console.sys
    console.sys = SimpleNamespace(stdout=stream, stderr=io.StringIO())
    try:
        console.replace_unprintable()
        print("a 東 é", file=stream, flush=True)
    finally:
        console.sys = real
    assert raw.getvalue() == b"a ? \xe9\n"
