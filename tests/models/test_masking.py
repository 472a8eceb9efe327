"""Which tokens are hidden, what is seen in their place, and how they are predicted."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hypothesis import given, settings
from hypothesis import strategies as st
from packing import boundaries

from midigenre.errors import UserError
from midigenre.models import Encoder, FieldEmbedding, MaskedHead, MaskedModel, Masking
from midigenre.models.masking import NEVER, NOTE_TYPES, STRATEGIES, splitmix64_torch
from midigenre.registry import conf_dir
from midigenre.spec import Batch, Field, TokenSpec

NAMES = ("remi", "cp", "octuple", "midilike", "tsd", "mumidi")
SPECIAL = tuple(f"{name}_None" for name in ("PAD", "BOS", "EOS", "MASK"))


@lru_cache
def spec(name: str) -> TokenSpec:
    from midigenre.build import make_tokenizer

    with initialize_config_dir(str(conf_dir().resolve()), version_base=None):
        return make_tokenizer(compose("prepare", [f"tokenizer={name}"])).spec


def ids_of(of: TokenSpec, *steps: str) -> torch.Tensor:
    """Steps in words, fields joined by a blank."""
    rows = [[f.index[w] for f, w in zip(of.fields, step.split(), strict=True)] for step in steps]
    return torch.tensor(rows)


REMI_NOTES = (
    "Bar_None", "TimeSig_4/4", "Position_0", "Tempo_120.0",
    "Program_0", "Pitch_60", "Velocity_63", "Duration_1.0.8",
    "Program_-1", "PitchDrum_36", "Velocity_95", "Duration_0.4.8",
    "Position_8", "Program_0", "Pitch_64", "Velocity_63", "Duration_1.0.8",
    "Bar_None", "TimeSig_4/4", "Position_0", "Program_0", "Pitch_60", "Velocity_63",
    "Duration_2.0.8",
)  # fmt: skip
REMI_GROUPS = "0 1 2 3 4444 5555 6 7777 8 9 a bbbb".replace(" ", "")
REMI_BARS = [0] * 17 + [1] * 7


def tempo_of(of: TokenSpec) -> str:
    return next(t for t in of.fields[0].tokens if t.startswith("Tempo_"))


def remi_ids() -> torch.Tensor:
    of = spec("remi")
    words = [tempo_of(of) if w.startswith("Tempo") else w for w in REMI_NOTES]
    return ids_of(of, *words)


def random_ids(of: TokenSpec, n: int, seed: int = 0) -> torch.Tensor:
    random = np.random.default_rng(seed)
    columns = []
    for field in of.fields:
        known = np.flatnonzero(~field.is_type(*NEVER))
        columns.append(random.choice(known, n))
    return torch.from_numpy(np.stack(columns, 1))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("structure", [False, True])
def test_what_is_hidden_and_what_is_seen(name, strategy, structure):
    """Specials are never targets nor drawn, replacements keep the type, shares are as asked."""
    of = spec(name)
    if strategy == "bar" and of.bars == "none":
        with pytest.raises(ValueError, match="strategy=bar needs bars"):
            Masking(of, strategy)
        return
    masking = Masking(of, strategy, 0.3, structure=structure)
    ids = random_ids(of, 24_000)
    for f, field in enumerate(of.fields):  # a fifth of all that is never hidden
        never = torch.from_numpy(np.flatnonzero(field.is_type(*NEVER)))
        ids[::5, f] = never[torch.arange(len(ids[::5])) % len(never)]
    cu = boundaries([40] * 600)
    torch.manual_seed(1)
    before = ids.clone()
    seen, hidden = masking(ids, cu)
    assert torch.equal(ids, before)
    assert seen.dtype == torch.int64
    assert torch.equal(seen[~hidden], ids[~hidden])
    maskable = torch.stack(
        [
            torch.from_numpy(
                ~f.is_type(*NEVER) & (structure | f.is_type(*NOTE_TYPES))
            )[ids[:, i]]
            for i, f in enumerate(of.fields)
        ],
        1,
    )  # fmt: skip
    assert not (hidden & ~maskable).any()
    assert torch.equal(masking.attributes_NF(ids) >= 0, maskable)
    assert {f for f in range(len(of.fields)) if maskable[:, f].any()} == set(masking.fields)
    assert hidden.sum() / maskable.sum() == pytest.approx(
        0.3, abs=0.05 if strategy == "bar" else 0.02
    )
    masked = torch.tensor(of.special("MASK"))
    is_mask = (seen == masked) & hidden
    assert is_mask.sum() / hidden.sum() == pytest.approx(0.8, abs=0.02)
    changed = hidden & ~is_mask & (seen != ids)
    assert changed.sum() / hidden.sum() == pytest.approx(0.1, abs=0.02)
    for i, field in enumerate(of.fields):
        types = np.array(field.types)
        rows = changed[:, i]
        assert (types[seen[rows, i]] == types[ids[rows, i]]).all()
        if i == 0 and len(of.fields) == 1:  # each id of a type can be drawn
            pitches = set(np.flatnonzero(field.is_type(types[ids[rows, i][0]])).tolist())
            assert len(set(seen[rows, i].tolist()) & pitches) > len(pitches) / 4


def same_group(masking: Masking, ids: torch.Tensor, cu: torch.Tensor) -> np.ndarray:
    """For every two tokens whether they were hidden together in each of many draws."""
    draws = []
    for seed in range(200):
        torch.manual_seed(seed)
        _, hidden = masking(ids, cu, share=0.5)
        draws.append(hidden.flatten().numpy())
    table = np.stack(draws, 1)
    return (table[:, None] == table[None]).all(-1) & table.any(1)[None] & table.any(1)[:, None]


def test_a_note_of_remi_is_hidden_as_a_whole():
    ids = remi_ids()
    for structure in (False, True):
        masking = Masking(spec("remi"), "compound", structure=structure)
        together = same_group(masking, ids, boundaries([len(ids)]))
        groups = np.array(list(REMI_GROUPS))
        counts = {g: (groups == g).sum() for g in groups}
        is_note = np.array([counts[g] > 1 for g in groups])
        wanted = groups[:, None] == groups[None]
        if not structure:
            wanted &= is_note[:, None] & is_note[None]
        np.testing.assert_array_equal(together, wanted)


def test_a_phrase_that_begins_inside_a_note_shares_no_group_with_the_one_before():
    of = spec("remi")
    ids = ids_of(of, "Program_0", "Pitch_60", "Velocity_63", "Velocity_63", "Duration_1.0.8")
    together = same_group(Masking(of, "compound"), ids, boundaries([3, 2]))
    phrase = np.array([0, 0, 0, 1, 1])
    np.testing.assert_array_equal(together, phrase[:, None] == phrase[None])


def test_bar_hides_an_attribute_in_a_bar():
    ids = remi_ids()
    together = same_group(Masking(spec("remi"), "bar"), ids, boundaries([len(ids)]))
    types = np.array([w.split("_")[0].replace("PitchDrum", "Pitch") for w in REMI_NOTES])
    bar = np.array(REMI_BARS)
    wanted = (types[:, None] == types[None]) & (bar[:, None] == bar[None])
    is_note = np.isin(types, NOTE_TYPES)
    np.testing.assert_array_equal(together, wanted & is_note[:, None] & is_note[None])


def octuple_ids(bars, seed=0):
    of = spec("octuple")
    ids = random_ids(of, len(bars), seed)
    ids[:, 2] = torch.tensor([of.fields[2].index[f"Bar_{b}"] for b in bars])
    return ids


def test_octuple_hides_steps_or_fields_of_bars():
    bars = [0, 0, 0, 1, 1, 0, 0, 2]
    phrase = np.array([0, 0, 0, 0, 0, 1, 1, 1])
    ids, cu = octuple_ids(bars), boundaries([5, 3])
    names = np.array([f.name for f in spec("octuple").fields])
    maskable = np.isin(names, NOTE_TYPES)
    step, field = (x.flatten() for x in np.meshgrid(range(8), range(8), indexing="ij"))
    may = maskable[field][:, None] & maskable[field][None]
    together = same_group(Masking(spec("octuple"), "compound"), ids, cu)
    np.testing.assert_array_equal(together, (step[:, None] == step[None]) & may)
    together = same_group(Masking(spec("octuple"), "bar"), ids, cu)
    place = phrase[step] * 10 + np.array(bars)[step]
    wanted = (place[:, None] == place[None]) & (field[:, None] == field[None]) & may
    np.testing.assert_array_equal(together, wanted)
    # Bars of two phrases that have the same number are two bars.
    two = same_group(Masking(spec("octuple"), "bar"), octuple_ids([0, 0]), boundaries([1, 1]))
    assert not (two & ~np.eye(16, dtype=bool)).any()


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("name", ["remi", "cp", "octuple"])
@settings(max_examples=15, deadline=None, derandomize=True)
@given(data=st.data())
def test_with_keys_a_phrase_is_masked_alike_in_any_company(name, strategy, data):
    of = spec(name)
    lengths = data.draw(st.lists(st.integers(1, 30), min_size=1, max_size=6))
    order = data.draw(st.permutations(range(len(lengths))))
    masking = Masking(of, strategy)
    keys = torch.arange(len(lengths)) * 1000 - 3
    phrases = [random_ids(of, n, seed=i) for i, n in enumerate(lengths)]

    def masked(which):
        cu = boundaries([lengths[i] for i in which])
        found = masking(
            torch.cat([phrases[i] for i in which]), cu, share=0.15, keys_B=keys[list(which)]
        )
        parts = [x.split([lengths[i] for i in which]) for x in found]
        return dict(zip(which, zip(*parts, strict=True), strict=True))

    together = masked(order)
    for i in range(len(lengths)):
        for one, other in zip(masked([i])[i], together[i], strict=True):
            assert torch.equal(one, other)
        hidden = together[i][1]
        assert hidden.any() == (masking.attributes_NF(phrases[i]) >= 0).any()


def test_the_numbers_of_keys_are_even_and_those_of_other_keys_are_others():
    of = spec("octuple")
    ids = random_ids(of, 20_000)
    cu = boundaries([100] * 200)
    masking = Masking(of, "element")
    one = masking(ids, cu, share=0.15, keys_B=torch.arange(200))[1]
    other = masking(ids, cu, share=0.15, keys_B=torch.arange(200) + 200)[1]
    maskable = masking.attributes_NF(ids) >= 0
    n = maskable.sum()
    assert one.sum() / n == pytest.approx(0.15, abs=0.01)
    assert (one & other).sum() / n == pytest.approx(0.15**2, abs=0.005)
    columns = one[:, list(masking.fields)].double()
    assert columns.T.corrcoef().fill_diagonal_(0).abs().max() < 0.05


def test_numbers_are_splitmix64():
    """The first numbers of the reference implementation from seed 0 (Vigna, splitmix64.c)."""
    golden = 0x9E3779B97F4A7C15
    states = [(golden * i) % 2**64 for i in range(3)]
    signed = torch.tensor([s - 2**64 if s >> 63 else s for s in states])
    found = [int(x) % 2**64 for x in splitmix64_torch(signed)]
    assert found == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]


def test_drawing_is_a_function_of_the_seed_and_hides_at_least_one_token():
    of = spec("octuple")
    ids, cu = random_ids(of, 4), boundaries([3, 1])
    masking = Masking(of, "element", share=0.001)
    for seed in range(20):
        torch.manual_seed(seed)
        _, hidden = masking(ids, cu)
        assert hidden.sum() == 1
    torch.manual_seed(3)
    one = masking(ids, cu)
    torch.manual_seed(3)
    for a, b in zip(one, masking(ids, cu), strict=True):
        assert torch.equal(a, b)
    only_structure = ids_of(spec("remi"), "Bar_None", "Position_0")
    for keys in (None, torch.tensor([1])):
        seen, hidden = Masking(spec("remi"))(only_structure, boundaries([2]), keys_B=keys)
        assert not hidden.any()
        assert torch.equal(seen, only_structure)


def test_settings_out_of_range_are_refused():
    of = spec("remi")
    for settings_, message in (
        ({"strategy": "notes"}, "strategy='notes' is unknown"),
        ({"share": 0}, "share=0 must be above 0"),
        ({"share": 1.5}, "share=1.5"),
        ({"replace": (0.8, 0.1)}, "three shares"),
        ({"replace": (0.8, 0.1, 0.3)}, "sum 1"),
        ({"replace": (1.2, -0.1, -0.1)}, "three shares"),
    ):
        with pytest.raises(ValueError, match=message):
            Masking(of, **settings_)
    bare = TokenSpec("bare", (Field("token", (*SPECIAL[:3], "Pitch_1")),), "none", 4)
    with pytest.raises(UserError, match=r"special_tokens=\[PAD,BOS,EOS,MASK\]"):
        Masking(bare)
    silent = TokenSpec("silent", (Field("token", (*SPECIAL, "Bar_None")),), "token", 4)
    with pytest.raises(ValueError, match="no token that may be hidden"):
        Masking(silent)


def test_no_table_is_saved():
    assert Masking(spec("cp")).state_dict() == {}


def made(of: TokenSpec, **changed) -> tuple[MaskedModel, Batch]:
    masking = Masking(of, **changed)
    model = MaskedModel(
        FieldEmbedding(of.sizes, 16, dropout=0.0),
        Encoder(16, 1, 2, 16, dropout=0.0),
        masking,
        MaskedHead(of.sizes, 16, masking.fields),
    ).double()
    ids, lengths = random_ids(of, 50), (20, 1, 29)
    zero = torch.zeros(3, dtype=torch.int64)
    return model, Batch(ids, boundaries(lengths), lengths, {}, zero, zero)


@pytest.mark.parametrize("name", ["remi", "cp", "octuple"])
def test_the_head_predicts_hidden_tokens_alone(name):
    model, batch = made(spec(name), strategy="element")
    h = torch.randn(50, 16, dtype=torch.float64, requires_grad=True)
    _, hidden = model.masking(batch.ids_NF, batch.cu_seqlens)
    nats, hits = model.head.loss(h, batch.ids_NF, hidden)
    dense = model.head.norm(torch.nn.functional.gelu(model.head.hidden(h)))
    assert not nats[~hidden].any()
    assert not hits[~hidden].any()
    for f in model.head.fields:
        log_probs = model.head.out[str(f)](dense).log_softmax(-1)
        rows = hidden[:, f]
        wanted = -log_probs.gather(1, batch.ids_NF[:, f, None])[:, 0]
        torch.testing.assert_close(nats[rows, f].double(), wanted[rows], rtol=1e-5, atol=1e-5)
        assert torch.equal(hits[rows, f], (log_probs.argmax(-1) == batch.ids_NF[:, f])[rows])
    nats.sum().backward()
    assert torch.equal(h.grad.abs().sum(1) > 0, hidden.any(1))


def test_every_weight_has_a_gradient_whatever_is_hidden():
    """Several processes wait for every gradient; a batch may hide nothing of a field."""
    model, batch = made(spec("octuple"), strategy="bar", share=0.01)
    _, _, hidden = model.loss(batch)
    assert len(hidden.any(0).nonzero()) < len(model.head.fields)
    nats, _, _ = model.loss(batch)
    nats.sum().backward()
    for name, weight in model.named_parameters():
        assert weight.grad is not None, name


def test_hidden_tokens_are_not_seen():
    """With MASK in their place, other values there change nothing but their own loss."""
    of = spec("octuple")
    model, batch = made(of, replace=(1.0, 0.0, 0.0))
    keys = torch.arange(3)
    seen, hidden = model.masking(batch.ids_NF, batch.cu_seqlens, keys_B=keys)
    other = torch.where(hidden, random_ids(of, 50, seed=5), batch.ids_NF)
    seen_other, hidden_other = model.masking(other, batch.cu_seqlens, keys_B=keys)
    assert torch.equal(seen, seen_other)
    assert torch.equal(hidden, hidden_other)
    assert torch.equal(seen, model.masking.hide(batch.ids_NF, hidden))
    one = model.predict(batch, hidden)[0]
    other = model.loss(batch, keys_B=keys)[0]
    assert torch.equal(one, other)
    # And the model looks both ways: the first step's loss hangs on the last step of its phrase.
    last = batch.ids_NF.clone()
    last[19] = random_ids(of, 1, seed=9)[0]
    moved = model(batch, last)[:20] - model(batch, batch.ids_NF)[:20]
    assert moved[0].abs().sum() > 0
    rest = model(batch, last)[20:] - model(batch, batch.ids_NF)[20:]
    assert not rest.any()
