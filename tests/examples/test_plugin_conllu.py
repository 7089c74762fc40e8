"""A newcomer's corpus format: one file outside the package, on the command line and in Python."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
from fork_server import ForkServer

from maskery.core.registry import load_plugin
from maskery.data.corpus.config import CorpusConfig
from maskery.data.corpus.reader import Corpus

SCRIPT = Path(__file__).parents[2] / "examples" / "plugins" / "conllu_reader.py"
READER = f"{SCRIPT}:read_conllu"
# Universal Dependencies, "CoNLL-U Format": a text line, a multiword token, SpaceAfter, empty nodes.
TREEBANK = """\
# sent_id = 1
# text = They buy and sell books.
1\tThey\tthey\tPRON\t_\t_\t2\tnsubj\t_\t_
2\tbuy\tbuy\tVERB\t_\t_\t0\troot\t_\t_

1-2\tvámonos\t_\t_\t_\t_\t_\t_\t_\tSpaceAfter=No
1\tvamos\tir\tVERB\t_\t_\t0\troot\t_\t_
2\tnos\tnosotros\tPRON\t_\t_\t1\tobj\t_\t_
2.1\tempty\t_\t_\t_\t_\t_\t_\t_\t_
3\t,\t,\tPUNCT\t_\t_\t1\tpunct\t_\tLang=es|SpaceAfter=Yes
4\tya\tya\tADV\t_\t_\t1\tadvmod\t_\tSpaceAfter=No
5\t!\t!\tPUNCT\t_\t_\t1\tpunct\t_\t_
"""
SENTENCES = ["They buy and sell books.", "vámonos, ya!"]


@pytest.fixture
def treebanks(tmp_path: Path) -> Path:
    """A folder with a treebank, a packed one, and files that are none."""
    folder = tmp_path / "treebanks"
    folder.mkdir()
    (folder / "a.conllu").write_text(TREEBANK, "utf-8")
    (folder / "b.conllu.gz").write_bytes(gzip.compress(TREEBANK.replace("buy", "borrow").encode()))
    (folder / "README.txt").write_text("no sentence of the treebank")
    return folder


def test_it_is_a_short_file() -> None:
    assert len(SCRIPT.read_text("utf-8").splitlines()) <= 70


def test_sentences_from_the_command_lines_name(treebanks: Path) -> None:
    corpus = Corpus.open([str(treebanks)], CorpusConfig(reader=READER))
    others = [sentence.replace("buy", "borrow") for sentence in SENTENCES]
    assert [example.text for example in corpus] == SENTENCES + others
    assert [path.name for path in corpus.files] == ["a.conllu", "b.conllu.gz"]


def test_the_same_in_python(server: ForkServer, treebanks: Path) -> None:
    read = load_plugin(READER, flag="--reader", contract="a reader")
    named = Corpus.open([str(treebanks)], CorpusConfig(reader=READER))
    assert list(Corpus.open([str(treebanks)], CorpusConfig(reader=read))) == list(named)
    done = server.python(SCRIPT, treebanks / "a.conllu")
    assert (done.stdout.splitlines(), done.returncode) == (SENTENCES, 0), done.stderr


def test_a_run_trains_on_a_treebank(server: ForkServer, tmp_path: Path) -> None:
    """Training, then evaluation of its model, from the command line."""
    path = tmp_path / "train.conllu"
    one = TREEBANK.partition("\n\n")[0]
    path.write_text("\n\n".join(one.replace("books", f"{n} books") for n in range(60)), "utf-8")
    run = tmp_path / "run"
    flags = ["--model", "scratch:tiny", "--vocab-size", "120", "--max-steps", "2"]
    no_gpu = {"CUDA_VISIBLE_DEVICES": ""}
    for command in (
        ["train", "text", str(path), "--reader", READER, "--output", str(run), *flags],
        ["evaluate", str(run), "--data", str(path), "--reader", READER],
        ["evaluate", str(run), "--trust", READER],
    ):
        done = server.python("-m", "maskery.cli.main", *command, environment=no_gpu)
        assert done.returncode == 0, done.stderr
    assert (run / "model" / "model.safetensors").is_file()
    assert "conllu_reader.py:read_conllu" in (run / "config.yaml").read_text("utf-8")
