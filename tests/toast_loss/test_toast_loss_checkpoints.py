"""What others' code does with a loss's state: averages, files of tensors, sharded and distributed checkpoints."""

import copy
import socket

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from test_toast_loss_state import assert_same, trained
from toast_loss_cases import CLASSES, make_rows
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn, get_ema_multi_avg_fn

from toast_kernels import ToastLoss

TABLES = [{}, {"top_k": 2}]
KINDS = pytest.mark.parametrize("settings", [*TABLES, {"pool_rows": 50, "save_pool": True}], ids=str)
TABLES = pytest.mark.parametrize("settings", TABLES, ids=str)


class Model(nn.Module):
    """A network with the loss in it, as trainers want it."""

    def __init__(self, criterion):
        super().__init__()
        self.linear = nn.Linear(CLASSES, CLASSES)
        self.criterion = criterion

    def forward(self, x, y):
        return self.criterion(self.linear(x), y)


def fresh(settings):
    return Model(ToastLoss(CLASSES, num_epochs=3, **settings))


def goes_on(criterion, source):
    """That the two give the same losses and the same soft targets from here on."""
    source, (logits, labels) = copy.deepcopy(source), make_rows(seed=5)
    for epoch in (1, 2):
        for part in (criterion, source):
            part.set_epoch(epoch)
        assert torch.equal(criterion(logits, labels), source(logits, labels))
    assert_same(criterion, source)


@KINDS
def test_a_state_moved_to_the_cpu_by_hand(settings):
    source, target = Model(trained(**settings)), fresh(settings)
    target.load_state_dict({name: x.cpu().clone() for name, x in source.state_dict().items()}, assign=True)
    goes_on(target.criterion, source.criterion)


@TABLES
@pytest.mark.parametrize(
    "average",
    [
        {},
        {"use_buffers": True, "avg_fn": get_ema_avg_fn()},
        {"use_buffers": True, "multi_avg_fn": get_ema_multi_avg_fn()},
    ],
    ids=["plain", "EMA", "EMA, foreach"],
)
def test_an_averaged_model_has_the_soft_targets(settings, average):
    source = fresh(settings)
    averaged = AveragedModel(source, **average)
    source.criterion.load_state_dict(trained(**settings).state_dict())
    for _ in range(3):
        averaged.update_parameters(source)
    copied = averaged.module.criterion
    torch.testing.assert_close(copied.soft_targets.dense(), source.criterion.soft_targets.dense())
    assert copied.filled.all()
    if not average:
        goes_on(copied, source.criterion)


@TABLES
def test_an_average_of_the_states_values(settings):
    """As timm's ModelEma takes it; 0.7 and 0.3 of one number are that number but for rounding."""
    source, ema = trained(**settings), trained(**settings)
    for _ in range(5):
        for mine, theirs in zip(ema.state_dict().values(), source.state_dict().values(), strict=True):
            mine.copy_(0.75 * mine + 0.25 * theirs)
    target = fresh(settings).criterion
    target.load_state_dict(ema.state_dict())
    assert target.filled.all()
    torch.testing.assert_close(target.soft_targets.dense(), source.soft_targets.dense())


@KINDS
def test_safetensors(settings, tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    source, target = Model(trained(**settings)), fresh(settings)
    safetensors.save_model(source, tmp_path / "model.safetensors")
    safetensors.load_model(target, tmp_path / "model.safetensors")
    goes_on(target.criterion, source.criterion)
    safetensors.save_file(source.state_dict(), tmp_path / "state.safetensors")
    target = fresh(settings)
    target.load_state_dict(safetensors.load_file(tmp_path / "state.safetensors"))
    goes_on(target.criterion, source.criterion)


@TABLES
def test_hugging_face_save_pretrained(settings, tmp_path):
    transformers = pytest.importorskip("transformers")

    class Config(transformers.PretrainedConfig):
        model_type = "toast-test"

    class Pretrained(transformers.PreTrainedModel):
        config_class = Config

        def __init__(self, config):
            super().__init__(config)
            self.linear, self.criterion = nn.Linear(CLASSES, CLASSES), ToastLoss(CLASSES, num_epochs=3, **settings)
            self.post_init()

        def _init_weights(self, module):
            pass

    source = Pretrained(Config())
    source.criterion.load_state_dict(trained(**settings).state_dict())
    source.save_pretrained(tmp_path)
    target = Pretrained.from_pretrained(tmp_path)
    assert torch.equal(target.linear.weight, source.linear.weight)
    goes_on(target.criterion.train(), source.criterion)


@KINDS
def test_distributed_checkpoint_into_a_fresh_module(settings, tmp_path):
    source, target = Model(trained(**settings)), fresh(settings)
    dcp.save(get_model_state_dict(source), checkpoint_id=tmp_path, no_dist=True)
    state = get_model_state_dict(target)
    dcp.load(state, checkpoint_id=tmp_path, no_dist=True)
    set_model_state_dict(target, state)
    assert torch.equal(target.linear.weight, source.linear.weight)
    goes_on(target.criterion, source.criterion)


@pytest.fixture
def group():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.timeout(120)
@KINDS
@pytest.mark.parametrize("full", [True, False], ids=["full", "sharded"])
def test_fsdp2_state(group, full, settings, tmp_path):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (1,))
    source = fully_shard(Model(trained(**settings)), mesh=mesh)
    options = StateDictOptions(full_state_dict=full)
    dcp.save(get_model_state_dict(source, options=options), checkpoint_id=tmp_path)
    with torch.device("meta"):
        target = fully_shard(fresh(settings), mesh=mesh)
    target.to_empty(device="cpu")
    state = get_model_state_dict(target, options=options)
    dcp.load(state, checkpoint_id=tmp_path)
    set_model_state_dict(target, state, options=options)
    goes_on(target.criterion, source.criterion)


@pytest.mark.timeout(120)
def test_distributed_data_parallel_leaves_out_what_it_is_told(group):
    def broadcast(model):
        parallel = nn.parallel.DistributedDataParallel(model)
        return {id(buffer) for buffer in parallel.modules_buffers}

    model = Model(trained(pool_rows=50, save_pool=True))
    table = {id(buffer) for buffer in model.criterion.buffers()}
    assert broadcast(model) == table  # and the pool is not in it
    ignored = [f"criterion.{name}" for name, _ in model.criterion.named_buffers()]
    model._ddp_params_and_buffers_to_ignore = ignored
    assert broadcast(model) == set()
    assert set(model.criterion._ddp_params_and_buffers_to_ignore) == {name.split(".")[1] for name in ignored}
