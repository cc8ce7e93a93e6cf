"""Checks of `emae doctor`: libraries, the device, and whether it computes rightly."""

import platform
from importlib import import_module
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from importlib.util import find_spec
from pathlib import Path

import torch
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from efficient_mae.bench.contenders import model_step
from efficient_mae.bench.doctor_finding import Finding, Plan, note, ok, problem
from efficient_mae.data.batches.generators import torch_seeded
from efficient_mae.engine.machine.distributed import find_device
from efficient_mae.methods import create_model

_PACKAGE = "efficient-mae"
# What an extra of this package is for.
_EXTRAS = {
    "hub": "Hugging Face data sets (--data hf:...) and transformers exports",
    "onnx": "emae export --format onnx",
    "formats": "DICOM and HEIC images",
    "parquet": "tables in Parquet",
    "detect": "emae detect",
}
# Libraries that are imported by another name than they are installed by.
_MODULES = {"pillow": "PIL", "pyyaml": "yaml", "scikit-learn": "sklearn"}
# Largest error of a product of random matrices, as a share of its norm: some units in the last place (2 ** -24 and
# 2 ** -9). TensorFloat-32 misses float32's by far.
_LARGEST_ERROR = {torch.float32: 1e-5, torch.bfloat16: 1e-2}


def check_python(_: Plan) -> Finding:
    """The interpreter against what the package asks for."""
    found = platform.python_version()
    if not _is_installed():
        return ok(f"Python {found}")
    wanted = metadata(_PACKAGE)["Requires-Python"]
    if not SpecifierSet(wanted).contains(found, prereleases=True):
        return problem(f"Python {found}", f"make an environment with Python {wanted}")
    return ok(f"Python {found}")


def check_libraries(_: Plan) -> Finding:
    """Versions against what the package asks for and what those libraries ask of each other; each is imported."""
    if not _is_installed():
        return note("run from its source, so that no requirements are known", "to have them checked: pip install .")
    names = [requirement.name for requirement in _requirements(_PACKAGE)]
    unmet = {text: wanted for name in (_PACKAGE, *names) for text, wanted in _unmet(name).items()}
    if unmet:
        wanted = " ".join(f"'{requirement}'" for requirement in dict.fromkeys(unmet.values()))
        return problem("; ".join(unmet), f"pip install --upgrade {wanted}")
    broken = {name: reason for name in names if (reason := _broken(name))}
    if broken:
        return problem("; ".join(broken.values()), f"pip install --force-reinstall {' '.join(broken)}")
    import torchvision

    main = {"torch": torch.__version__, "torchvision": torchvision.__version__}
    main |= {name: version(name) for name in names if name in ("timm", "numpy", "pillow", "safetensors")}
    return ok(", ".join(f"{name} {found}" for name, found in main.items()))


def _is_installed() -> bool:
    try:
        return bool(version(_PACKAGE))
    except PackageNotFoundError:
        return False


def check_extras(_: Plan) -> Finding:
    """What can be installed besides."""
    if not _is_installed():
        return ok("not looked at")
    missing = {extra: use for extra, use in _EXTRAS.items() if _unmet(_PACKAGE, extra)}
    if missing:
        found = "; ".join(f"without {extra}: no {use}" for extra, use in missing.items())
        return note(found, f"if you want it: pip install '{_PACKAGE}[{','.join(missing)}]'")
    return ok(", ".join(_EXTRAS))


def check_device(plan: Plan) -> Finding:
    """The device, and why there is no GPU where one could be expected."""
    device = find_device(plan.asked_device)
    if device.type == "cuda":
        name, capability = torch.cuda.get_device_name(device), torch.cuda.get_device_capability(device)
        if not _built_for(capability):
            return problem(
                f"{name}: torch {torch.__version__} was built for {', '.join(torch.cuda.get_arch_list())}, "
                f"and this GPU is sm_{capability[0]}{capability[1]}",
                "install a torch that was built for it (https://pytorch.org)",
            )
        memory = torch.cuda.get_device_properties(device).total_memory / 2**30
        return ok(f"{name}, {memory:.0f} GiB, CUDA {torch.version.cuda}")
    if plan.asked_device != "auto":
        return ok("cpu, as asked for")
    driver = _driver()
    if not driver:
        return note("cpu: no NVIDIA driver found", "a CPU does for trials; large models want an NVIDIA GPU")
    found = f"cpu: there is an NVIDIA driver ({driver}), but torch {torch.__version__}"
    if torch.version.cuda is None:
        return problem(
            f"{found} was built without CUDA", "install one with CUDA (https://pytorch.org), or pass --device cpu"
        )
    return problem(
        f"{found} with CUDA {torch.version.cuda} cannot use it",
        "look at nvidia-smi and CUDA_VISIBLE_DEVICES, upgrade an old driver, or pass --device cpu",
    )


def check_precision(plan: Plan) -> Finding:
    """Whether the hardware computes in bf16, and has packed attention for it."""
    if plan.device.type == "cuda" and plan.precision == "bf16":
        if torch.cuda.get_device_capability(plan.device) < (8, 0):
            return problem("bf16, which this GPU does not compute in", "pass --precision fp32")
        if find_spec("torch.nn.attention.varlen") is None:
            return problem("bf16, but torch has no packed attention (varlen)", "pip install --upgrade torch")
        return ok("bf16, with packed attention (varlen)")
    if plan.precision == "bf16":
        return ok("bf16")
    return note("fp32: this hardware does not compute in bf16", "expect about half the speed of hardware that does")


def check_numerics(plan: Plan) -> Finding:
    """Matrix products on the device against the host's in float64."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(256, 256, generator=generator, dtype=torch.float64) for _ in range(2))
    errors = {}
    for dtype in (torch.float32, torch.bfloat16) if plan.precision == "bf16" else (torch.float32,):
        product = (a.to(plan.device, dtype) @ b.to(plan.device, dtype)).double().cpu()
        errors[dtype] = float((product - a @ b).norm() / (a @ b).norm())
    found = ", ".join(f"{str(dtype).removeprefix('torch.')} products are {e:.0e} off" for dtype, e in errors.items())
    if wrong := [dtype for dtype, error in errors.items() if not error < _LARGEST_ERROR[dtype]]:
        at_most = f"{_LARGEST_ERROR[wrong[0]]:.0e}"
        return problem(
            f"{found}, more than {at_most}", "unset NVIDIA_TF32_OVERRIDE; else suspect the device or its libraries"
        )
    return ok(found)


def check_step(plan: Plan) -> Finding:
    """A training step of a small model, with everything that a large one's has."""
    with torch_seeded(0):
        model = create_model("mae_vit_tiny_patch16", img_size=64, depth=2, decoder_depth=2, decoder_embed_dim=64)
    step, batches = model_step(model, 4, plan.device, plan.precision)
    losses = [step(index, [batches[0]]) for index in range(2)]
    values = [float(value) for figures in losses for value in figures]
    if not all(torch.isfinite(torch.tensor(values))):
        return problem(
            f"loss and gradient norm of a small model are {values}", "suspect the device; try --precision fp32"
        )
    return ok(f"forward, backward and optimiser in {plan.precision} on {plan.device}; all numbers finite")


SOFTWARE_CHECKS = {"python": check_python, "libraries": check_libraries, "extras": check_extras}
COMPUTING_CHECKS = {
    "device": check_device,
    "precision": check_precision,
    "numerics": check_numerics,
    "a step": check_step,
}


def _requirements(package: str, extra: str = "") -> list[Requirement]:
    """What a package asks for here, or, with an extra, what that adds."""
    found = [Requirement(line) for line in requires(package) or []]
    plain = [r for r in found if r.marker is None or r.marker.evaluate({"extra": ""})]
    if not extra:
        return plain
    return [r for r in found if r not in plain and r.marker is not None and r.marker.evaluate({"extra": extra})]


def _unmet(package: str, extra: str = "") -> dict[str, str]:
    """What is wrong with the versions that a package asks for, each with the requirement that would mend it."""
    unmet = {}
    for requirement in _requirements(package, extra):
        wanted = f"{requirement.name}{requirement.specifier}"
        try:
            found = version(requirement.name)
        except PackageNotFoundError:
            unmet[f"{package} needs {wanted}, which is not installed"] = wanted
            continue
        if not requirement.specifier.contains(found, prereleases=True):
            unmet[f"{package} needs {wanted}, here is {found}"] = wanted
    return unmet


def _broken(name: str) -> str:
    """Why a library cannot be imported; empty where it can."""
    try:
        import_module(_MODULES.get(name, name.replace("-", "_")))
    except Exception as error:  # half installed, or built for another version, it raises anything
        return f"{name} cannot be imported: {type(error).__name__}: {' '.join(str(error).split())}"
    return ""


def _built_for(capability: tuple[int, int]) -> bool:
    """Whether this torch has code for a GPU: compiled for its generation, or portable (PTX) from an earlier one."""
    for arch in torch.cuda.get_arch_list():
        kind, _, digits = arch.rstrip("af").partition("_")
        built = divmod(int(digits), 10)
        if built <= capability and (kind == "compute" or built[0] == capability[0]):
            return True
    return False


def _driver() -> str:
    """The NVIDIA driver's own description, or that there is its device; empty without one."""
    said = Path("/proc/driver/nvidia/version")
    if said.is_file():
        return said.read_text().splitlines()[0].partition(":")[2].strip()
    return "/dev/nvidia0" if Path("/dev/nvidia0").exists() else ""
