"""Masks, written out."""

import torch

from models.network.layers import build_causal_mask, build_extension_mask, lay_out_candidates


def test_causal_mask_hides_padding_but_lets_every_token_see_itself():
    mask = build_causal_mask(torch.tensor([[True, False, True]]))[0, 0].long()

    assert mask.tolist() == [
        [1, 0, 0],
        [1, 1, 0],  # padding sees itself, so that its softmax is over something
        [1, 0, 1],  # and nobody else sees it
    ]


def test_new_tokens_see_the_valid_past_and_one_another_as_told():
    valid = torch.tensor([[True, False], [True, True]])
    own = torch.tensor([[True, False], [True, True]])

    mask = build_extension_mask(valid, own)[:, 0].long()

    assert mask.tolist() == [[[1, 0, 1, 0], [1, 0, 1, 1]], [[1, 1, 1, 0], [1, 1, 1, 1]]]


def test_a_candidate_sees_the_request_and_nothing_of_another():
    offsets, mask = lay_out_candidates(1, 2, 2, torch.device("cpu"))

    assert offsets.tolist() == [0, 1, 2, 1, 2]  # both candidates start behind the request
    assert mask.long().tolist() == [
        [1, 0, 0, 0, 0],  # the request
        [1, 1, 0, 0, 0],  # block token of the first
        [1, 1, 1, 0, 0],  # its inner token
        [1, 0, 0, 1, 0],
        [1, 0, 0, 1, 1],
    ]
