"""Batches, losses and the policy: the layout's labels, blind neighbours, and logits equal to the engine's."""

import random
from pathlib import Path

import pytest
import torch
from pydantic import BaseModel

from pasta_ray.engine import Engine, EngineConfig, replay
from pasta_ray.engine.tokenizer import Tokenizer
from pasta_ray.errors import InputError
from pasta_ray.lang import PositionStrategy, TagMap, parse
from pasta_ray.train.config import RunConfig, SftConfig, load_config
from pasta_ray.train.data import KINDS, Encoder, Record, build_example, collate, pack, read_records
from pasta_ray.train.loop import load_encoder
from pasta_ray.train.loss import next_token_loss, sums_by_kind
from pasta_ray.train.policy import Policy, load_policy
from pasta_ray.train.saving import save_adapter
from tests.engine.conftest import save_model
from tests.engine.test_tokenizer import save_tokenizer

DOCUMENT = (
    'Hi:\n1.<promise topic="One two" tokens="30"/><async> the first</async>\n'
    '2.<promise topic="b" tokens="10"/><async> second</async><sync/>\nend'
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tokenizer(save_model(tmp_path_factory.mktemp("model"), vocab_size=300))


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Tokenizer:
    return Tokenizer.load(folder, None)


TAGS = TagMap.after(300)


def record(document: str = DOCUMENT, id_: str = "d") -> Record:
    return Record(id=id_, instruction="Say", document=document)


def test_labels_are_the_answer_and_nothing_else(tokenizer: Tokenizer) -> None:
    """Guards against a prompt or forced token being learnt, and against one of the answer being left out."""
    example = build_example(record(), tokenizer, TAGS)
    batch = collate([example])
    prompt = tokenizer.encode_chat([{"role": "user", "content": "Say"}])
    answer = list(example.layout.ids[len(prompt) :])
    assert batch.labels.tolist() == [token for token in answer if token != TAGS.async_]
    assert answer[-1] == tokenizer.stop_ids[0]
    kinds = [KINDS[kind] for kind in batch.kinds.tolist()]
    assert kinds.count("tag") == 2 * 4 + 1
    assert kinds.count("length") == 2
    assert kinds.count("topic") == len(tokenizer.encode("One two") + tokenizer.encode("b"))
    count_label = batch.labels.tolist()[kinds.index("length")]
    assert tokenizer.decode([count_label]) == str(-(-(len(tokenizer.encode(" the first")) + 2) // 10)), "exact, not 30"


def test_what_is_predicted_and_what_is_seen_is_as_the_design_says(tokenizer: Tokenizer) -> None:
    """Guards mask, positions, labels and label sources of a batch against sets written by hand (DESIGN.md, section 4):
    two promises, a sync, text behind it, and a second group of one promise that nothing joins."""
    document = (
        'a<promise topic="b" tokens="10"/><async>c</async><promise topic="d" tokens="10"/><async>e</async><sync/>f'
        '<promise topic="g" tokens="10"/><async>h</async>i'
    )
    example = build_example(record(document), tokenizer, TAGS)
    batch = collate([example])
    prompt = len(tokenizer.encode_chat([{"role": "user", "content": "Say"}]))
    names = [
        tokenizer.decode([id_]) or dict(zip(TAGS.ids, "PTQAZS", strict=True)).get(id_, "$")
        for id_ in example.layout.ids[prompt:]
    ]
    assert "".join(names) == "aPbT1QAcZPdT1QAeZSfPgT1QAhZi$"
    #                         01234567890123456789012345678
    # Upper case: P promise, T tokens, Q promise end, A async, Z async end, S sync; $ is the end of the answer.
    first, second, third = set(range(6, 9)), set(range(14, 17)), set(range(24, 27))
    bodies = first | second | third

    def main_before(index: int) -> set[int]:
        return {i for i in range(index) if i not in bodies}

    visible: dict[int, set[int]] = {}
    for index in range(29):
        if index in first | second:  # its promise, all before it, and its own body so far; never the other body
            start = 6 if index in first else 14
            visible[index] = main_before(start) | set(range(start, index + 1))
        elif index in third:  # the bodies that the sync joined, too
            visible[index] = main_before(24) | first | second | set(range(24, index + 1))
        elif index < 17:  # main tokens before the sync see no body
            visible[index] = main_before(index + 1)
        else:  # the sync and what follows see the first two bodies; nothing joins the third
            visible[index] = main_before(index + 1) | first | second
    for index, seen in visible.items():
        row = batch.mask[0, 0, prompt + index].nonzero().flatten().tolist()
        assert row == [*range(prompt), *(prompt + i for i in sorted(seen))], index
    predicted = [index for index in range(29) if index not in (6, 14, 24)]  # an async is forced
    assert batch.labels.tolist() == [example.layout.ids[prompt + index] for index in predicted]
    skips = {9: 5, 17: 13, 27: 23}  # behind a body: predicted from the main token before it
    wanted = [skips.get(index, index - 1) for index in predicted]
    assert [source - prompt for source in batch.sources.tolist()] == wanted
    positions = [position - prompt for position in batch.positions[0, prompt:].tolist()]
    assert positions[:6] == [0, 1, 2, 3, 4, 5]  # a and the first promise, which ends at 5
    assert positions[6:9] == [6, 7, 8]  # its body
    assert positions[9:14] == [16, 17, 18, 19, 20]  # 5 + 1 + N on: the second promise
    assert positions[14:17] == [21, 22, 23]
    assert positions[17:24] == [31, 32, 33, 34, 35, 36, 37]  # sync, f, the third promise
    assert positions[24:27] == [38, 39, 40]
    assert positions[27:] == [48, 49]


@pytest.mark.parametrize(
    ("positions", "count", "gap"), [("pred-10x", "2", 20), ("pred-1x", "12", 12), ("fixed-33", "2", 33)]
)
def test_the_position_strategy_is_a_setting(
    folder: Path, tokenizer: Tokenizer, positions: str, count: str, gap: int
) -> None:
    """Guards the way from configuration to counts and positions, for documents that were written with any strategy."""
    config = RunConfig(name="x", model=str(folder), positions=positions)
    encoder = load_encoder(config)
    assert encoder.tags is not None
    assert encoder.tags.positions.name == positions
    for tokens in ("10", "7"):
        example = encoder.encode(record(f'a<promise topic="b" tokens="{tokens}"/><async>0123456789</async>c'))
        kinds = [KINDS[kind] for kind in example.kinds]
        assert (
            tokenizer.decode([id_ for id_, kind in zip(example.layout.ids, kinds, strict=True) if kind == "length"])
            == count
        )
        start = example.layout.ids.index(encoder.tags.async_)
        after = example.layout.ids.index(encoder.tags.async_end) + 1
        assert example.layout.positions[after] - example.layout.positions[start] == gap


def test_a_checkpoint_keeps_its_position_strategy(folder: Path, tmp_path: Path) -> None:
    """Guards against a second stage whose positions are not those of the first."""
    TagMap.after(300, PositionStrategy.named("pred-1x")).save(tmp_path)
    config = RunConfig(name="x", model=str(folder), init_adapter=tmp_path)
    encoder = load_encoder(config)
    assert encoder.tags is not None
    assert encoder.tags.positions.name == "pred-1x"
    with pytest.raises(InputError, match="positions is fixed-50; what the run starts from has pred-1x"):
        load_encoder(config.model_copy(update={"positions": "fixed-50"}))
    with pytest.raises(InputError, match=r"positions.*allowed: pred-10x"):
        load_config(SftConfig, None, ["name=x", "documents=[a]", "positions=pred-5x"])
    assert load_config(SftConfig, None, ["name=x", "documents=[a]", "positions=fixed"]).positions == "fixed-50"


def test_without_tags_the_same_text_is_plain(tokenizer: Tokenizer) -> None:
    """Guards the baseline: the same answer, the ordinary causal mask, no tag."""
    example = build_example(record(), tokenizer, None)
    assert not set(example.layout.ids) & set(TAGS.ids)
    assert tokenizer.decode(example.layout.ids).endswith(parse(DOCUMENT).text())
    mask = collate([example]).mask[0, 0]
    assert torch.equal(mask, torch.ones_like(mask).tril())


def test_neighbours_in_a_pack_are_blind_to_each_other(folder: Path, tokenizer: Tokenizer) -> None:
    """Guards against documents that leak into each other."""
    policy = random_policy(folder, tokenizer)
    a, b = (build_example(record(id_=name), tokenizer, TAGS) for name in ("a", "b"))
    alone, packed = policy(collate([b])), policy(collate([a, b]))
    assert torch.allclose(packed[-len(alone) :], alone, atol=1e-5)


def test_packs_hold_every_example_once_and_are_seeded() -> None:
    """Guards against a resumed run that sees other batches, against examples lost or doubled, and against waste."""
    lengths = [random.Random(n).randint(20, 500) for n in range(300)]
    packs = pack(lengths, 512, seed=1)
    assert sorted(index for indices in packs for index in indices) == list(range(300))
    sums = [sum(lengths[index] for index in indices) for indices in packs]
    assert max(sums) <= 512
    assert sum(sums) / (512 * len(packs)) > 0.9
    assert packs == pack(lengths, 512, seed=1)
    assert packs != pack(lengths, 512, seed=2)
    assert pack([512, 512], 512, seed=1) in ([[0], [1]], [[1], [0]])


def random_policy(folder: Path, tokenizer: Tokenizer) -> Policy:
    """LoRA's B starts at zero, which would hide a wrong merge: every trained parameter is random here."""
    config = RunConfig(name="x", model=str(folder), lora_rank=4, lora_alpha=8)
    policy = load_policy(config, Encoder(tokenizer, TAGS))
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.requires_grad:
                parameter.copy_((torch.randn_like(parameter) * 0.2).bfloat16())
    return policy.eval()


def test_a_trained_adapter_gives_the_engine_the_same_logits(folder: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Guards the one layout for both: training's single pass equals fork, step and join with the saved adapter."""
    torch.manual_seed(3)
    policy = random_policy(folder, tokenizer)
    save_adapter(policy, tmp_path)
    engine = Engine(EngineConfig(model=str(folder), adapter=str(tmp_path)))
    document = parse(DOCUMENT.replace('tokens="30"', 'tokens="20"'))
    example = build_example(record(document.linear()), tokenizer, TAGS)
    batch = collate([example])
    prompt = tokenizer.encode_chat([{"role": "user", "content": "Say"}])
    replayed = replay(engine, prompt, document)
    with torch.no_grad():
        trained = policy(batch)
    sources = batch.sources[batch.sources < len(replayed)]
    assert len(sources) > 20
    assert torch.allclose(replayed[sources], trained[: len(sources)], atol=1e-3)


def test_losses_by_kind() -> None:
    """Guards the sums of each kind, against a case worked out by hand."""
    losses = next_token_loss(torch.tensor([[0.0, 0.0], [0.0, 100.0]]), torch.tensor([0, 1]))
    sums = sums_by_kind(losses, torch.tensor([KINDS.index("text"), KINDS.index("tag")]))
    assert sums == {"loss_text": (pytest.approx(0.69315, abs=1e-4), 1), "loss_tag": (pytest.approx(0.0), 1)}


def test_bad_input_is_named(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """Guards against errors that do not say which line, document or field."""
    path = tmp_path / "documents.jsonl"
    path.write_text('{"id": "a"}\n', encoding="utf-8")
    with pytest.raises(InputError, match="line 1"):
        read_records([path])
    with pytest.raises(InputError, match="document bad: line 1, column 1"):
        build_example(record("<sync/>", "bad"), tokenizer, TAGS)
    with pytest.raises(InputError, match="learning_rate"):
        load_config(SftConfig, None, ["name=x", "documents=[a]", "learning_rate=-1"])
    with pytest.raises(InputError, match="unknown_field"):
        load_config(SftConfig, None, ["name=x", "documents=[a]", "unknown_field=1"])
    with pytest.raises(InputError, match="FIELD=VALUE"):
        load_config(SftConfig, None, ["name"])
    assert load_config(SftConfig, None, ["name=x", "documents=[a]", "epochs=3"]).epochs == 3


class Outer(BaseModel):
    """A configuration with fields in a field."""

    inner: dict[str, int]
    plain: int = 0


def test_settings_reach_nested_fields(tmp_path: Path) -> None:
    """Guards `--set a.b=c` over a file, and errors that name the field."""
    path = tmp_path / "run.yaml"
    path.write_text("inner: {a: 1, b: 2}\n", encoding="utf-8")
    assert load_config(Outer, path, ["inner.b=3", "inner.c=4"]).inner == {"a": 1, "b": 3, "c": 4}
    with pytest.raises(InputError, match=r"inner\.b"):
        load_config(Outer, path, ["inner.b=x"])
    with pytest.raises(InputError, match="plain holds no fields"):
        load_config(Outer, path, ["plain=1", "plain.b=2"])


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        (["zero_stage=0", "precision=bf16"], "zero_stage"),
        (["offload=[optimizer]", "zero_stage=0"], "offload"),
        (["offload=[parameters]", "zero_stage=2"], "offload: parameters"),
        (["offload=[disk]"], "offload"),
        (["mode=full", "init_adapter=x"], "init_adapter"),
        (["num_workers=[3, 2]"], "num_workers"),
        (["num_workers=0"], "num_workers"),
    ],
)
def test_fields_that_do_not_go_together(settings: list[str], complaint: str) -> None:
    """Guards against a run that starts its workers and then finds out."""
    with pytest.raises(InputError, match=complaint):
        load_config(SftConfig, None, ["name=x", "documents=[a]", *settings])


def test_a_range_of_workers() -> None:
    """Guards YAML's lists as ranges."""
    assert load_config(SftConfig, None, ["name=x", "documents=[a]", "num_workers=[1, 4]"]).num_workers == (1, 4)
