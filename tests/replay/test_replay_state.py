"""HardReplay: a saved state goes on to the bit."""

import copy
import io
from collections import UserDict

import pytest
import torch
from replay_cases import carried_rows, make_batch, make_logits, take_step

from toast_kernels import HardReplay

pytestmark = pytest.mark.usefixtures("kept_rows_backend")


def flat(batch):
    """All tensors that extend returned."""
    x, y, past = batch
    targets = {} if past.targets is None else past.targets.state_dict()
    return [x, y, past.index, *(value for value in targets.values() if isinstance(value, torch.Tensor))]


@pytest.mark.parametrize("steps", [0, 1, 3])
@pytest.mark.parametrize("top_k", [None, 2])
def test_state_survives_a_file_and_goes_on_to_the_bit(top_k, steps):
    replay = HardReplay(0.5, 2, top_k=top_k)
    for number in range(steps):
        take_step(replay, number)
    file = io.BytesIO()
    torch.save(replay.state_dict(), file)
    file.seek(0)
    resumed = HardReplay(0.5, 2, top_k=top_k)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    for number in range(steps, steps + 3):
        one, two = (part.extend(*make_batch(number)) for part in (replay, resumed))
        assert all(torch.equal(a, b) for a, b in zip(flat(one), flat(two), strict=True))
        for part, (x, y, _) in ((replay, one), (resumed, two)):
            part.keep(x, y, make_logits(len(x), number))

    resumed.load_state_dict(HardReplay().state_dict())
    assert resumed.extend(*make_batch(0))[2].targets is None
    replay.reset()
    assert replay.extend(*make_batch(0))[2].targets is None


def test_the_state_says_how_often_a_row_was_carried():
    replay, resumed = HardReplay(0.5, 2), HardReplay(0.5, 2)
    for number in range(2):
        x, y, _ = replay.extend(*make_batch(number))
        replay.keep(x, y, make_logits(12, number), -x[:, 0])  # the older a row, the harder
    resumed.load_state_dict(replay.state_dict())
    x, y, past = resumed.extend(*make_batch(2))
    assert {step for step, _ in carried_rows(x, past)} == {0}
    resumed.keep(x, y, make_logits(12, 2), -x[:, 0])
    x, _, past = resumed.extend(*make_batch(3))
    assert {step for step, _ in carried_rows(x, past)} == {2}


def test_a_loaded_state_shares_nothing_with_where_it_came_from():
    replay, resumed = HardReplay(0.5), HardReplay(0.5)
    take_step(replay, 0)
    resumed.load_state_dict(replay.state_dict())
    expected = copy.deepcopy(resumed).extend(*make_batch(1))[0]
    replay.state_dict()["carried"]["x"]["x"].zero_()
    assert torch.equal(resumed.extend(*make_batch(1))[0], expected)


def test_the_state_holds_tensors_by_name_whatever_held_them():
    def batch(step):
        x, y = make_batch(step)
        return UserDict(image=x, extra=(x + 1,)), y

    replay, resumed = HardReplay(0.5), HardReplay(0.5)
    x, y, _ = replay.extend(*batch(0))
    replay.keep(x, y, make_logits(12, 0))
    file = io.BytesIO()
    torch.save(replay.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    assert list(state["carried"]["x"]) == ["x['image']", "x['extra'][0]"]
    resumed.load_state_dict(state)
    one, two = (part.extend(*batch(1))[0] for part in (replay, resumed))
    assert torch.equal(one["image"], two["image"])
    assert torch.equal(one["extra"][0], two["extra"][0])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": 2.0}, "the state must have temperature = 2.0, got 3.0"),
        ({"top_k": 2}, "the state must have top_k = 2, got None"),
    ],
    ids=["temperature", "top_k"],
)
def test_a_state_of_other_settings_is_refused(settings, message):
    replay = HardReplay(0.5)
    take_step(replay, 0)
    with pytest.raises(ValueError, match=message):
        HardReplay(0.5, **settings).load_state_dict(replay.state_dict())
