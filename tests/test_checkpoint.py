"""Checkpoints are read without running their code, unwrapped, and refused with a reason if they do not fit."""

import pickle

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from deltaconvert.checkpoint import build, load_into, read_state_dict, read_weights
from deltaconvert.errors import CheckpointError, InputError


def net():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".safetensors"])
def test_plain_files_give_back_what_was_saved(tmp_path, suffix):
    state = net().state_dict()
    write = save_file if suffix == ".safetensors" else torch.save
    write(state, tmp_path / f"net{suffix}")
    assert same(read_state_dict(tmp_path / f"net{suffix}"), state)


@pytest.mark.parametrize("key", ["state_dict", "model", "model_state_dict", "params", "params_ema", "ema"])
def test_weights_are_found_under_usual_keys(tmp_path, key):
    state = net().state_dict()
    torch.save({"epoch": 3, key: state, "optimizer": {"lr": torch.ones(1)}}, tmp_path / "net.pt")
    assert same(read_state_dict(tmp_path / "net.pt"), state)


def test_of_several_weights_one_is_taken_and_the_others_are_named(tmp_path):
    state, average = net().state_dict(), net().state_dict()
    optimizer = {"state": {0: {"exp_avg": torch.ones(1)}}}
    torch.save({"net": state, "ema": {"state_dict": average}, "optimizer": optimizer}, tmp_path / "net.pt")
    taken = read_weights(tmp_path / "net.pt")
    assert same(taken.state, average) and taken.entry == "ema.state_dict" and taken.others == ("net",)
    taken = read_weights(tmp_path / "net.pt", "net")
    assert same(taken.state, state) and taken.entry == "net" and taken.others == ("ema",)
    with pytest.raises(CheckpointError, match=r"no entry 'emma'.*its entries are net, ema, optimizer"):
        read_weights(tmp_path / "net.pt", "emma")
    torch.save(state, tmp_path / "flat.pt")
    assert read_weights(tmp_path / "flat.pt")[1:] == ("", ())
    with pytest.raises(CheckpointError, match=r"no entry 'ema'.*none: leave it out"):
        read_weights(tmp_path / "flat.pt", "ema")


def test_an_entry_of_another_name_is_asked_for(tmp_path):
    state = net().state_dict()
    torch.save({"generator": state, "critic": net().state_dict(), "epoch": 3}, tmp_path / "net.pt")
    with pytest.raises(CheckpointError, match="Give --entry generator or --entry critic"):
        read_state_dict(tmp_path / "net.pt")
    assert same(read_state_dict(tmp_path / "net.pt", "generator"), state)


def test_a_dictionary_that_holds_itself(tmp_path):
    endless = {"epoch": 3}
    endless["model"] = endless
    torch.save(endless, tmp_path / "net.pt")
    with pytest.raises(CheckpointError, match="no weights but entries epoch, model"):
        read_state_dict(tmp_path / "net.pt")


def test_wrappers_in_wrappers_prefixes_and_entries_that_are_no_weights(tmp_path):
    state = net().state_dict()
    prefixed = {f"module._orig_mod.{key}": value for key, value in state.items()}
    torch.save({"model": {"state_dict": {**prefixed, "mask_values": [0, 1]}}}, tmp_path / "net.pt")
    assert same(read_state_dict(tmp_path / "net.pt"), state)


def test_a_prefix_that_only_some_keys_have_stays(tmp_path):
    state = {"module.a": torch.ones(1), "b": torch.ones(1)}
    torch.save(state, tmp_path / "net.pt")
    assert set(read_state_dict(tmp_path / "net.pt")) == {"module.a", "b"}


class Boom:
    """Unpickling this would run code, with a visible effect."""

    def __reduce__(self):
        return (pytest.fail, ("the file ran code",))


@pytest.mark.parametrize("write", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value, 2))])
def test_nothing_is_unpickled_that_can_run_code(tmp_path, write):
    write({"state_dict": Boom()}, tmp_path / "net.pt")
    with pytest.raises(CheckpointError, match=r"run code.*torch\.save\(model\.state_dict\(\)"):
        read_state_dict(tmp_path / "net.pt")


def test_a_whole_module_says_how_to_save_it_again(tmp_path):
    torch.save(net(), tmp_path / "net.pt")
    with pytest.raises(CheckpointError, match=r"names torch\.nn\.modules\..*save the weights alone"):
        read_state_dict(tmp_path / "net.pt")


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("keep", [0.0, 0.1, 0.5, 0.95])
def test_damaged_files(tmp_path, suffix, keep):
    path = tmp_path / f"net{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(net().state_dict(), path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(CheckpointError, match="net"):
        read_state_dict(path)


def test_files_without_weights(tmp_path):
    torch.save({"epoch": 3, "lr": 0.1}, tmp_path / "net.pt")
    with pytest.raises(CheckpointError, match="no weights but entries epoch, lr"):
        read_state_dict(tmp_path / "net.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(CheckpointError, match="no weights but list"):
        read_state_dict(tmp_path / "list.pt")
    with pytest.raises(FileNotFoundError):
        read_state_dict(tmp_path / "none.pt")


def test_weights_that_fit_are_loaded():
    state = {key: value + 1 for key, value in net().state_dict().items()}
    model = load_into(net(), state)
    assert same(model.state_dict(), state)


def test_num_batches_tracked_may_miss():
    state = net().state_dict()
    del state["1.num_batches_tracked"]
    load_into(net(), state)


def test_what_does_not_fit_is_listed_and_nothing_is_copied():
    state = net().state_dict()
    state["extra.weight"] = torch.ones(1)
    del state["1.bias"]
    state["0.weight"] = torch.ones(4, 3, 5, 5)
    state["0.bias"] = state["0.bias"] + 1
    model = net()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(CheckpointError) as error:
        load_into(model, state)
    text = str(error.value)
    assert "1 missing: 1.bias" in text and "1 unexpected: extra.weight" in text
    assert "1 of another shape: 0.weight (file 4x3x5x5, network 4x3x3x3)" in text
    assert same(model.state_dict(), before)


def test_a_prefix_of_all_names_goes_where_it_is_all_that_is_in_the_way():
    state = net().state_dict()
    prefixed = {f"model.{key}": value for key, value in state.items()}
    model = load_into(net(), prefixed)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    first = next(iter(state))
    with pytest.raises(CheckpointError, match=rf"1 missing: {first}\n"):  # named as the network has it
        load_into(net(), {key: value for key, value in prefixed.items() if key != f"model.{first}"})
    with pytest.raises(CheckpointError, match=r"unexpected: model\."):
        load_into(net(), {**prefixed, "loss.weight": torch.ones(1)})
    model = load_into(net(), {f"lightning.{key}": value for key, value in prefixed.items()})
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    with pytest.raises(CheckpointError, match=r"a\.pt does not fit Sequential; .*\n.*\n.* unexpected: a, b"):
        load_into(net(), {"a": torch.ones(1), "b": torch.ones(1)}, "a.pt")


def test_long_lists_are_cut():
    with pytest.raises(CheckpointError, match=r"20 unexpected: k0, .*k9, \.\.\.") as error:
        load_into(net(), {**net().state_dict(), **{f"k{i}": torch.ones(1) for i in range(20)}})
    assert "k10" not in str(error.value)


# ---- architectures


@pytest.fixture
def package(tmp_path, monkeypatch):
    (tmp_path / "my_nets.py").write_text(
        "from torch import nn\n"
        "def small(classes=2, name='x'):\n    return nn.Linear(3, classes)\n"
        "def broken():\n    raise RuntimeError('no such size')\n"
        "def text():\n    return 'text'\n"
    )
    monkeypatch.chdir(tmp_path)
    return "my_nets"


def test_names_of_the_zoo_and_those_nearly_so():
    model = build("mobilenetv2")
    assert not model.training and sum(p.numel() for p in model.parameters()) == 3_504_872
    with pytest.raises(InputError, match="did you mean resnet18"):
        build("resnet_18")


def test_networks_of_the_zoo_with_another_number_of_classes():
    assert build("mobilenetv2(classes=10)").classifier[-1].out_features == 10
    for arch, message in (
        ("mobilenetv2(wide=2)", "raised TypeError"),
        ("mobilenetv2(10)", "only keyword arguments"),
        ("mobilenet_v2(classes=10)", "did you mean mobilenetv2"),
    ):
        with pytest.raises(InputError, match=message):
            build(arch)


def test_factories_in_this_folder(package):
    assert build(f"{package}:small").out_features == 2
    assert build(f"{package}:small(classes=10, name='y')").out_features == 10
    assert not build("torch.nn:Identity").training


@pytest.mark.parametrize(
    "arch, message",
    [
        ("my_nets:smal", "did you mean small"),
        ("my_nets:broken", "raised RuntimeError: no such size"),
        ("my_nets:text", "returned a str"),
        ("my_nets:small(classes=1, wrong=2)", "raised TypeError"),
        ("my_nets:small(5)", "only keyword arguments"),
        ("my_nets:small(**{})", "cannot be given"),
        ("my_nets:small(classes=__import__('os').system('false'))", "cannot read"),
        ("my_nets:small(classes=print)", "cannot read"),
        ("my_nets:small(classes=)", "cannot read"),
        ("my_nets:small(classes=1)(name='x')", "cannot read"),
        ("no_such_package:net", "cannot be imported"),
    ],
)
def test_architectures_that_do_not_work(package, arch, message):
    with pytest.raises(InputError, match=message):
        build(arch)
