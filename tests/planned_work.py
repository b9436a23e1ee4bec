"""What a row of some work takes of a small model, in round numbers."""

from rere.planning.operations import Counts, Shape
from rere.planning.sample import Unit

UNIT = Unit(Counts(10, 50, 24, 2), Counts(30, 90, 72, 2), 0.5)
SHAPE = Shape(num_layers=2, layer_weights=100, attention_width=8, hidden_size=4)
