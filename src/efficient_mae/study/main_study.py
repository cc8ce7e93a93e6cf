"""The main study as docs/results.md says it in advance: its rows, and the hypotheses that it decides."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Hypothesis:
    """What a study is to decide: how far a cell's accuracy lies from another's.

    Attributes:
        text: in words.
        first, second: names of the cells; what is told of is the second's accuracy less the first's.
        bound: of that difference, 0 to 1.
        above: the difference lies above the bound; or below.
        helps: this is whether the method helps.
    """

    text: str
    first: str
    second: str
    bound: float = 0.0
    above: bool = True
    helps: bool = False


# Label, cell and the paper's figures.
MAIN_ROWS: tuple[tuple[str, str, dict[str, float]], ...] = (
    ("MAE, 0.75", "mae-0.75", {"top1": 84.6}),
    ("MAE, 0.85", "mae-0.85", {"top1": 84.1}),
    ("MAE, 0.95", "mae-0.95", {"top1": 81.6}),
    ("Efficient MAE, 0.85", "efficient-mae-0.85", {"top1": 84.6}),
    ("Efficient MAE, 0.95", "efficient-mae-0.95", {"top1": 82.9}),
    ("the loss alone, 0.95", "loss-alone-0.95", {}),
    ("beta alone, 0.95", "beta-alone-0.95", {}),
    ("as many targets at random, 0.95", "random-targets-0.95", {}),
    ("difficulties shuffled, 0.95", "shuffled-difficulties-0.95", {}),
)
HYPOTHESES = (
    Hypothesis("MAE at 0.95 is worse than MAE at 0.75: below 0", "mae-0.75", "mae-0.95", above=False),
    Hypothesis(
        "Efficient MAE at 0.95 is better than MAE at 0.95: above 0", "mae-0.95", "efficient-mae-0.95", helps=True
    ),
    Hypothesis(
        "Efficient MAE at 0.85 is no worse than MAE at 0.75 by more than 1 point: above -1",
        "mae-0.75",
        "efficient-mae-0.85",
        bound=-0.01,
    ),
)
# Whether difficulty matters: exploratory, by one F test.
CONTROLS = ("efficient-mae-0.95", "random-targets-0.95", "shuffled-difficulties-0.95")
MAIN_REMARK = (
    "What decides was said before any run (docs/results.md): ridge regression on the mean of the patches' features. "
    "Logistic regression, k-NN and the other features are means over the same label subsets, and decide nothing. "
    "Targets at random are as many in each image as beta leaves, and weigh d^-gamma of their own distance; shuffled "
    "difficulties are an image's own, at other patches, for beta and for gamma."
)
