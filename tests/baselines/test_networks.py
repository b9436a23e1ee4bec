"""GRU4Rec, Caser and SASRec against slow or independent implementations."""

import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from untrained_networks import NUM_ITEMS, PADDING, WIDTH, untrained

from rere.baselines.caser import CaserModel
from rere.baselines.network import Network
from rere.baselines.sasrec import visible_keys

HISTORIES = torch.tensor([[PADDING, PADDING, 5, 0, 11], [3, 1, 4, 1, 5], [PADDING] * 4 + [9]])


def embedded(model: Network, history: torch.Tensor) -> torch.Tensor:
    """The item embeddings of a history, 0 for padding: (T,) -> (T, D)."""
    return model.items.weight[history] * (history != PADDING)[:, None]


# ------------------------------------------------------------------------------ every network


@torch.inference_mode()
def test_states_do_not_depend_on_the_amount_of_padding(any_network):
    short = torch.tensor([[3, 1, 4], [2, 7, 7]])
    long = torch.cat([torch.full((2, 5), PADDING), short], dim=1)
    expected = any_network(short)
    torch.testing.assert_close(any_network(long)[:, 5:], expected, atol=1e-6, rtol=1e-6)
    # The embedding of padding has no effect.
    any_network.items.weight[PADDING] = 100.0
    torch.testing.assert_close(any_network(long)[:, 5:], expected, atol=1e-6, rtol=1e-6)
    assert not torch.allclose(any_network(short.flip(1))[:, -1], expected[:, -1])


@torch.inference_mode()
def test_states_do_not_depend_on_the_other_rows_of_the_batch(any_network):
    together = any_network(HISTORIES)
    for row, history in enumerate(HISTORIES):
        is_item = history != PADDING
        alone = any_network(history[is_item][None])[0]
        torch.testing.assert_close(together[row, is_item], alone, atol=1e-6, rtol=1e-6)


@torch.inference_mode()
def test_states_do_not_depend_on_later_items(any_network):
    # Rows are computed separately, since rows of one batch may round differently.
    rows = [[PADDING, 3, 1, 4, 1], [PADDING, 3, 1, 7, 1]]
    states = torch.cat([any_network(torch.tensor([row])) for row in rows])  # (2, 5, D)
    torch.testing.assert_close(states[0, 1:3], states[1, 1:3], atol=0, rtol=0)
    assert not torch.allclose(states[0, 3], states[1, 3])
    assert not torch.allclose(states[0, 4], states[1, 4])


@torch.inference_mode()
def test_scores_are_dot_products_with_item_embeddings(any_network):
    states = torch.randn(2, 3, WIDTH)
    scores = any_network.scores(states)
    assert scores.shape == (2, 3, NUM_ITEMS)
    expected = (states[1, 2] * any_network.items.weight[7]).sum()
    torch.testing.assert_close(scores[1, 2, 7], expected)


# ------------------------------------------------------------------------------------ GRU4Rec


@torch.inference_mode()
def test_gru4rec_equals_a_gru_on_packed_histories():
    model = untrained("gru4rec")
    lengths = (HISTORIES != PADDING).sum(dim=1)
    items = nn.utils.rnn.pad_sequence(
        [embedded(model, history[history != PADDING]) for history in HISTORIES], batch_first=True
    )
    packed = pack_padded_sequence(items, lengths, batch_first=True, enforce_sorted=False)
    recurrent, _ = pad_packed_sequence(model.gru(packed)[0], batch_first=True)
    states = model(HISTORIES)
    for row, length in enumerate(lengths.tolist()):
        expected = model.out(recurrent[row, :length])
        torch.testing.assert_close(states[row, -length:], expected, atol=1e-6, rtol=1e-6)


@torch.inference_mode()
def test_gru4rec_has_a_zero_state_before_the_first_item():
    model = untrained("gru4rec")
    for length in (1, 4):
        states = model(torch.full((1, length), PADDING))
        torch.testing.assert_close(states, model.out.bias.expand(1, length, WIDTH))


# -------------------------------------------------------------------------------------- Caser


def slow_caser(model: CaserModel, window: torch.Tensor) -> torch.Tensor:
    """The paper's network on one L x D image, filter by filter: (L, D) -> (D,)."""
    features = []
    for height, filters in enumerate(model.horizontal, start=1):
        for weight, bias in zip(filters.weight, filters.bias, strict=True):  # (D, height), ()
            fits = [window[at : at + height].T for at in range(len(window) - height + 1)]
            features.append(max(torch.relu((weight * patch).sum() + bias) for patch in fits))
    for weight, bias in zip(model.vertical.weight, model.vertical.bias, strict=True):
        features += list((weight[0] * window).sum(dim=0) + bias)  # (L, 1) * (L, D) -> (D,)
    return torch.relu(model.out(torch.stack(features)))


@torch.inference_mode()
def test_caser_equals_a_slow_network_on_each_window():
    model = untrained("caser")
    states = model(HISTORIES)
    for row, history in enumerate(HISTORIES):
        image = torch.cat([torch.zeros(2, WIDTH), embedded(model, history)])
        for position in range(len(history)):
            expected = slow_caser(model, image[position : position + 3])
            torch.testing.assert_close(states[row, position], expected, atol=1e-5, rtol=1e-5)


# ------------------------------------------------------------------------------------- SASRec


def test_queries_attend_to_themselves_and_earlier_items():
    visible = visible_keys(torch.tensor([[True, False, False]]))
    assert visible.int().tolist() == [[[[1, 0, 0], [0, 1, 0], [0, 1, 1]]]]


@torch.inference_mode()
def test_sasrec_equals_a_stack_of_torch_encoder_layers():
    model = untrained("sasrec")
    history = torch.tensor([[3, 1, 4, 1]])
    # Positions count from the latest item.
    states = model.items(history) + model.positions.weight[:4].flip(0)
    causal = nn.Transformer.generate_square_subsequent_mask(4)
    for block in model.blocks:
        layer = nn.TransformerEncoderLayer(
            WIDTH, 2, dim_feedforward=WIDTH, dropout=0.0, batch_first=True, norm_first=True
        ).eval()
        norm, first, _, _, second = block.feed_forward
        pairs = {
            layer.norm1: block.attention_norm,
            layer.self_attn.out_proj: block.attention_out,
            layer.norm2: norm,
            layer.linear1: first,
            layer.linear2: second,
        }
        for theirs, ours in pairs.items():
            theirs.load_state_dict(ours.state_dict())
        layer.self_attn.in_proj_weight.copy_(block.queries_keys_values.weight)
        layer.self_attn.in_proj_bias.copy_(block.queries_keys_values.bias)
        states = layer(states, src_mask=causal)
    torch.testing.assert_close(model(history), model.norm(states), atol=1e-5, rtol=1e-5)
