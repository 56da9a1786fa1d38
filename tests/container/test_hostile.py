"""Hostile files with a right checksum are refused: a file can give nothing but a converted network."""

import pytest
from contained import load, rewrite

import deltaconvert
from deltaconvert.errors import ContainerError
from deltaconvert.graph_json.values import MAX_DEPTH


def node(network, op):
    return next(n for n in network["nodes"] if n["op"] == op)


def nested(depth):
    value = 1
    for _ in range(depth):
        value = [value]
    return value


def test_a_rewritten_file_loads(saved):
    """So the files of the tests below are refused for their changes, and not because they were rewritten."""
    rewrite(saved[2], lambda n: None)
    load(saved[2])


CALLS = """
    torch.load torch.from_file torch.save torch.hub.load torch.jit.load torch.ops.load_library
    os.system posix.system nt.system builtins.eval builtins.exec builtins.__import__ builtins.open
    operator.attrgetter operator.methodcaller operator.call functools.partial
    torch.set_num_threads torch.manual_seed torch.nn.functional.torch torch.nn.functional.handle_torch_function
    torch.__builtins__ torch.empty torch._C._nn.__class__ torch relu
    """.split()


@pytest.mark.parametrize("name", ["", *CALLS])
def test_no_other_function(saved, name):
    def change(network):
        node(network, "function")["target"] = name

    rewrite(saved[2], change)
    with pytest.raises(ContainerError, match="a converted file may not"):
        load(saved[2])


@pytest.mark.parametrize(
    "name", ["apply_", "numpy", "storage", "data_ptr", "register_hook", "__class__", "set_", "resize_"]
)
def test_no_other_method(saved, name):
    def change(network):
        node(network, "function").update(op="method", target=name)

    rewrite(saved[2], change)
    with pytest.raises(ContainerError, match="a converted file may not"):
        load(saved[2])


@pytest.mark.parametrize(
    "attribute", ["__class__", "__init__", "grad_fn", "data", "_backward_hooks", "storage"]
)
def test_no_other_attribute(saved, attribute):
    def change(network):
        call = node(network, "function")
        call.update(target="builtins.getattr", args=[call["args"][0], attribute])
        call.pop("kwargs", None)

    rewrite(saved[2], change)
    with pytest.raises(ContainerError, match="the word"):
        load(saved[2])


def record(network, name, field):
    """Make the outputs claim this class."""
    outputs = network["signature"]["outputs"]
    outputs["tree"] = {"record": [name, [[field, outputs["tree"]]]]}


CHANGES = {
    "unknown operator": (lambda n: node(n, "operator").update(type="Evil"), "does not know"),
    "the base class": (lambda n: node(n, "operator").update(type="Operator", settings={}), "does not know"),
    "unknown module": (lambda n: node(n, "operator").update(op="module", type="Module"), "may not"),
    "unknown kind": (lambda n: node(n, "operator").update(op="call_python"), "unknown kind"),
    "missing setting": (lambda n: node(n, "operator")["settings"].pop("weight"), "makes no network"),
    "tensor not there": (
        lambda n: node(n, "operator")["settings"].update(weight={"tensor": ["x", "contiguous"]}),
        "does not hold",
    ),
    "text for a tensor": (lambda n: node(n, "operator")["settings"].update(weight="w"), "makes no network"),
    "a path for a word": (lambda n: node(n, "function")["args"].append("/etc/passwd"), "the word"),
    "undefined node": (lambda n: node(n, "function").update(args=[{"node": "ghost"}]), "not defined before"),
    "a node that reads itself": (
        lambda n: node(n, "function").update(args=[{"node": node(n, "function")["name"]}]),
        "not defined before",
    ),
    "a cycle": (lambda n: n["nodes"].insert(1, n["nodes"].pop(-2)), "not defined before"),
    "two nodes of one name": (lambda n: n["nodes"].insert(1, n["nodes"][0]), "two nodes have the name"),
    "code for a name": (lambda n: n["nodes"][0].update(name="x = __import__('os')"), "no identifier"),
    "a keyword for a name": (lambda n: n["nodes"][0].update(name="lambda"), "no identifier"),
    "code for an argument": (
        lambda n: node(n, "function").update(kwargs={"a=print(1)": 1}),
        "no identifiers",
    ),
    "no output": (lambda n: n["nodes"].pop(), "must end with its one output"),
    "two outputs": (lambda n: n["nodes"].insert(1, n["nodes"][-1]), "must end with its one output"),
    "no nodes": (lambda n: n.update(nodes=[]), "no list of 1 to"),
    "nodes of another kind": (lambda n: n.update(nodes={"a": 1}), "no list of 1 to"),
    "too many nodes": (lambda n: n.update(nodes=[n["nodes"][0]] * 20_001), "no list of 1 to"),
    "a list that never ends": (
        lambda n: node(n, "function").update(args=[[0] * 10_001]),
        "10000 are the limit",
    ),
    "deep nesting": (lambda n: node(n, "function").update(args=[nested(MAX_DEPTH + 2)]), "nested deeper"),
    "code for a field": (lambda n: record(n, "Pair", "a, b=print(1)"), "unknown kind 'record'"),
    "code for a class": (lambda n: record(n, "Pair\nimport os", "a"), "unknown kind 'record'"),
    "a field of the class": (lambda n: record(n, "Pair", "__class__"), "unknown kind 'record'"),
    "a class of many fields": (
        lambda n: n["signature"]["outputs"].update(
            tree={"record": ["Pair", [[f"a{i}", {"tuple": []}] for i in range(101)]]}
        ),
        "unknown kind 'record'",
    ),
    "a keyword for a field": (lambda n: record(n, "Pair", "lambda"), "unknown kind 'record'"),
    "deep outputs": (lambda n: n["signature"]["outputs"].update(tree=nested(100)), "nested deeper"),
    "a huge number": (lambda n: node(n, "function").update(args=[10**30]), "which no size"),
    "a huge input": (lambda n: n["inputs"][0].update(shape=[1, 3, 10**6, 10**6]), "elements"),
    "a negative input": (lambda n: n["inputs"][0].update(shape=[1, 3, -8, 8]), "no shape"),
    "an unknown type": (lambda n: n["inputs"][0].update(dtype="object"), "unknown type"),
    "no inputs": (lambda n: n.update(inputs=[]), "inputs"),
    "a huge padding": (
        lambda n: node(n, "operator")["settings"].update(padding={"tuple": [2**40, 2**40]}),
        "elements|makes no network",
    ),
    "a huge map": (
        lambda n: node(n, "function").update(
            target="torch.nn.functional.pad",
            args=[{"node": n["nodes"][0]["name"]}, {"tuple": [0, 2**33]}],
            kwargs={},
        ),
        "elements",
    ),
    "a NaN threshold": (lambda n: n.update(thresholds=[["input", float("nan")]]), "no threshold|makes no"),
    "thresholds of another kind": (lambda n: n.update(thresholds=[["input", []]]), "no rules"),
    "escape codes": (lambda n: n["nodes"][1].update(path="a\x1b[2J"), "no line of text"),
    "leaves out of order": (
        lambda n: n["signature"]["outputs"].update(tree={"tuple": [{"leaf": 1}]}),
        "in order",
    ),
    "another number of outputs": (
        lambda n: n["signature"]["outputs"].update(tree=[{"leaf": 0}, {"leaf": 1}]),
        "its signature has others",
    ),
}


@pytest.mark.parametrize("label", CHANGES)
def test_hostile_descriptions(saved, label):
    change, message = CHANGES[label]
    rewrite(saved[2], change)
    with pytest.raises(deltaconvert.DeltaConvertError, match=message):
        load(saved[2])


def test_json_nested_beyond_the_parser(saved):
    rewrite(saved[2], network="[" * 100_000)
    with pytest.raises(ContainerError):
        load(saved[2])
