"""Every test runs with the shapes and types in the package's signatures checked."""

from jaxtyping import install_import_hook

# The tower lets an int stand for a float, as Python does.
CHECKER = "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))"
install_import_hook("efficient_mae", CHECKER)
