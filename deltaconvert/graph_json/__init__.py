"""A normalised graph, and the signature of its calls, as JSON and named tensors: the inside of a converted file.
nodes.py, signature.py and values.py write and read each part; vocabulary.py has the functions that a file may name.

What comes back from a file is checked value by value: names are identifiers, operators are those of
deltaconvert.ops, functions and methods those of deltaconvert.graph_json.vocabulary, a node reads only nodes before it.
docs/format.md has the form.
"""
