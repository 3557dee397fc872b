"""`python -m jaxface.zeroshot` as a user calls it, on a small model whose vocabulary is CLIP's."""

import csv
import json
import sys

import cv2
import jax
import numpy as np
import pytest

import jaxface
from jaxface.data.tasks import AGE, EMOTION, GENDER
from jaxface.errors import UserError, run_command
from jaxface.models.variants import TextConfig
from jaxface.report.console import write_rows
from jaxface.runs.predictions_file import read_predictions
from jaxface.runs.zero_shot import TEMPLATES, Template, ZeroShotRun, read_templates, zero_shot
from jaxface.zeroshot import main
from small_models import FAMILIES, KINDS, random_tensors
from weights_convert.checkpoint import write_checkpoint
from weights_convert.towers import Towers

TOWERS = Towers(KINDS["core"].vision, TextConfig(width=32, depth=1, heads=2, context=32, output=48))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    write_checkpoint(path, TOWERS, random_tensors(TOWERS))
    return path


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Five photos, one of them broken, one of them deeper down."""
    folder = tmp_path_factory.mktemp("photos")
    (folder / "more").mkdir()
    for index in range(4):
        image = np.random.RandomState(index).randint(0, 256, (40 + index, 50, 3), np.uint8)
        cv2.imwrite(str(folder / ("more" if index == 3 else ".") / f"{index}.jpg"), image)
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff broken")
    (folder / "notes.txt").write_text("no photo")
    return folder


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """Runs the command: exit status, standard output, standard error."""

    def run(*words):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("COLUMNS", "160")
        monkeypatch.setattr(sys, "argv", ["zeroshot", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            run_command(main)
        return ended.value.code, *capsys.readouterr()

    return run


def test_the_prompts_are_the_thesiss_eighteen():
    prompts = {task.name: [sentence for (sentence,) in TEMPLATES[task.name].prompts(task)] for task in (AGE, GENDER, EMOTION)}
    assert sum(map(len, prompts.values())) == 18
    assert prompts["age"][3] == "A photo of a person between 20-29 years old"
    assert prompts["gender"] == ["A photo of a male person", "A photo of a female person"]
    assert prompts["emotion"][5] == "A photo of an angry person"
    assert prompts["emotion"][3] == "A photo of a happy person"


def test_the_class_is_the_one_whose_sentences_are_nearest(checkpoint):
    clip = jaxface.load_clip(checkpoint)
    images = np.random.RandomState(0).uniform(-1, 1, (3, 32, 32, 3)).astype(np.float32)
    templates = {"gender": Template(("a {} face", "{a} {} person"), ("male", "old woman's"))}
    model = zero_shot(clip, ("gender",), templates)
    ids = jaxface.tokenize(["a male face", "a male person", "a old woman's face", "an old woman's person"])

    @jax.jit
    def run(clip, model):
        features = clip.encode_image(images, normalize=True)
        return clip.encode_text(ids, normalize=True), features, model.features(images), model.classify(features)["gender"]

    texts, features, same_features, logits = run(clip, model)
    np.testing.assert_allclose(same_features, features, rtol=1e-5, atol=1e-6)
    texts = np.asarray(texts, np.float64).reshape(2, 2, -1).mean(1)
    texts /= np.linalg.norm(texts, axis=1, keepdims=True)
    np.testing.assert_allclose(logits, np.exp(clip.logit_scale[...]) * np.asarray(features, np.float64) @ texts.T, rtol=1e-4, atol=1e-5)


def test_photos_are_classified_and_written_in_every_format(command, checkpoint, photos, tmp_path):
    words = ("--weights", checkpoint, "--photos", photos, "--batch-size", 3)
    status, printed, warned = command(*words, "--out", "all.parquet")
    assert status == 0
    assert "zero-shot, 4 images" in printed
    assert "broken.jpg" in warned
    predictions = read_predictions(tmp_path / "all.parquet")
    assert list(predictions.id) == [str(photos / name) for name in ("0.jpg", "1.jpg", "2.jpg", "more/3.jpg")]
    write_rows(tmp_path / "some.csv", predictions)
    write_rows(tmp_path / "some.jsonl", predictions)
    with (tmp_path / "some.csv").open() as file:
        table = list(csv.DictReader(file))
    lines = [json.loads(line) for line in (tmp_path / "some.jsonl").read_text().splitlines()]
    for row, line, gender in zip(table, lines, predictions.predicted("gender"), strict=True):
        assert row["gender"] == line["gender"] == GENDER.classes[gender]
        assert float(row["emotion_probability"]) == line["emotion_probability"] >= 1 / 7
        assert row["gender_label"] == ""
        assert line["gender_label"] is None


def test_a_prepared_folder_is_compared_with_its_labels(command, checkpoint, tmp_path):
    from jaxface.data.preparation import prepare_synthetic

    prepare_synthetic(tmp_path / "drawn", style="paint", count=20, test_count=11, size=32, seed=0, missing=0.0)
    status, printed, _ = command(
        "--weights", checkpoint, "--data", tmp_path / "drawn", "--tasks", "gender", "--batch-size", 4, "--out", "p.parquet"
    )
    assert status == 0
    predictions = read_predictions(tmp_path / "p.parquet")
    assert len(predictions) == 11
    right = predictions.predicted("gender") == predictions.labels["gender"]
    assert f"{100 * right.mean():.2f}" in printed
    assert "gender: confusion matrix" in printed


def test_templates_from_a_file_replace_the_thesiss(tmp_path):
    path = tmp_path / "templates.json"
    path.write_text(json.dumps({"gender": ["{}", "a {}"], "age": {"sentences": "{} years", "words": list("abcdefghi")}}))
    templates = read_templates(path)
    assert templates["gender"].prompts(GENDER) == [["male", "a male"], ["female", "a female"]]
    assert templates["age"].prompts(AGE)[8] == ["i years"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "expected JSON such as"),
        ('{"gender": 3}', "expected JSON such as"),
        ('{"gender": {"sentence": "{}"}}', "unknown key 'sentence'"),
        ('{"hair": "a {} head"}', "no task 'hair'"),
        ('{"gender": "a person"}', "makes the same prompts for two classes"),
        ('{"gender": "a {class} person"}', "only {} and {a} are known"),
        ('{"gender": {"sentences": "a {} person", "words": ["man"]}}', "1 words, expected 2"),
    ],
)
def test_a_broken_template_is_one_clear_line(content, message, tmp_path):
    path = tmp_path / "templates.json"
    path.write_text(content)
    with pytest.raises(UserError) as error:
        read_templates(path)["gender"].prompts(GENDER)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "name the images: --data FOLDER"),
        (("--photos", "nowhere"), "nowhere: no such file or folder"),
        (("--photos", ".", "--out", "p.xlsx"), "the suffix says the format: one of .csv, .jsonl, .parquet"),
        (("--data", "nowhere"), "no folder nowhere"),
        (("--photos", ".", "--templates", "t.json"), "t.json: cannot be read: No such file or directory; expected JSON such as"),
        (("--photos", "."), "no photos (.jpg"),
    ],
)
def test_wrong_input_is_one_line_and_status_2(words, message, command, checkpoint):
    status, _, printed = command("--weights", checkpoint, *words)
    assert status == 2
    assert message in printed
    assert len(printed.strip().splitlines()) == 1


@pytest.mark.parametrize("text", ["{", "[1]", "[" * 10_000])
def test_a_run_folder_whose_configuration_is_damaged_is_one_line(tmp_path, checkpoint, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=r"config\.json: (no JSON|holds a list)"):
        ZeroShotRun(tmp_path, checkpoint, ("gender",), TEMPLATES, (), "test").answers()


@pytest.fixture(scope="module")
def siglip(tmp_path_factory):
    """A small SigLIP, and a tokenizer of sentence pieces for it, with what is beside it."""
    tokenizers = pytest.importorskip("tokenizers")
    folder = tmp_path_factory.mktemp("siglip")
    pieces = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token="<unk>", byte_fallback=True))
    pieces.normalizer = tokenizers.normalizers.Replace(" ", "▁")
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=90, special_tokens=["<pad>", "<eos>", "<bos>", "<unk>"], show_progress=False)
    pieces.train_from_iterator(["a photo of a male person", "a photo of a happy female person"], trainer)
    pieces.post_processor = tokenizers.processors.TemplateProcessing(single="$A <eos>", special_tokens=[("<eos>", 1)])
    pieces.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"pad_token": {"content": "<pad>"}, "padding_side": "right"}))
    vision = FAMILIES["SigLIP"].vision
    text = TextConfig(
        32, 1, 2, 16, vision.width, 96, causal=False, last=True, output_bias=True, logit_bias=True, activation="gelu_tanh", epsilon=1e-6
    )
    towers = Towers(vision, text)
    write_checkpoint(folder / "model.safetensors", towers, random_tensors(towers))
    return folder


def test_siglip_classifies_by_the_ids_that_tokenizers_alone_gives(siglip):
    clip = jaxface.load_clip(siglip / "model.safetensors")
    sentences = ["A photo of a Male person", "A photo of a very happy and rather old female person"]
    alone = __import__("tokenizers").Tokenizer.from_file(str(siglip / "tokenizer.json"))
    ids = [[*alone.encode(sentence.lower(), add_special_tokens=False).ids[:15], 1] for sentence in sentences]
    assert len(ids[0]) < 16 == len(ids[1])
    ids = [row + [0] * (16 - len(row)) for row in ids]
    assert jaxface.tokenize(sentences, 16, siglip / "tokenizer.json").tolist() == ids
    templates = {"gender": Template(("{}",), tuple(sentences))}
    model = zero_shot(clip, ("gender",), templates, siglip)
    texts = jax.jit(lambda clip, ids: clip.encode_text(ids, normalize=True))(clip, np.array(ids))
    np.testing.assert_allclose(model.texts["gender"][...], texts, rtol=1e-5, atol=1e-6)


def test_a_tokenizer_file_that_does_not_fit_is_one_line(siglip, checkpoint, command, photos, tmp_path):
    (tmp_path / "bad.json").write_text("{}")
    (tmp_path / "alone.json").write_bytes((siglip / "tokenizer.json").read_bytes())
    for weights, file, message in (
        (siglip, None, "reads sentence pieces: --tokenizer FILE"),
        (siglip, "none.json", "none.json: no such file"),
        (siglip, "bad.json", "bad.json: no tokenizer"),
        (siglip, "alone.json", "alone.json: its padding token is none"),
        (checkpoint, siglip, "reads CLIP's tokens, which need no file"),
    ):
        status, _, printed = command("--weights", weights, "--photos", photos, *(("--tokenizer", file) if file else ()))
        assert (status, message in printed, len(printed.strip().splitlines())) == (2, True, 1), printed


def test_a_checkpoint_without_text_tower_is_refused(command, photos, tmp_path):
    towers = KINDS["spatial"]
    write_checkpoint(tmp_path / "spatial.safetensors", towers, random_tensors(towers))
    status, _, printed = command("--weights", "spatial.safetensors", "--photos", photos)
    assert status == 2
    assert "spatial.safetensors: holds a vision tower alone" in printed
