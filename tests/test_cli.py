"""The command as a user meets it: help, one-line errors, exit statuses, JSON."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from PIL import Image

import efficient_mae as emae
from efficient_mae.cli import main
from efficient_mae.commands import COMMANDS
from efficient_mae.errors import broken_library
from tests.tasks.conftest import TINY, flags, write_images

EMAE = [sys.executable, "-m", "efficient_mae"]


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    status = main(arguments)
    captured = capsys.readouterr()
    return status, captured.out, captured.err


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli")
    for label in ("circle", "dot"):
        for split in ("train", "test"):
            write_images(folder / "data" / split / label, 12)
    settings = {**TINY, "num_workers": 0, "epochs": 1, "batch_size": 8}
    assert main(["pretrain", *flags(data=folder / "data", out=folder / "run", **settings)]) == 0
    return folder / "run"


@pytest.mark.parametrize("command", COMMANDS)
def test_help_names_every_flag_with_its_default(command: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as stop:
        main([*command.split(), "--help"])
    text = capsys.readouterr().out
    assert stop.value.code == 0
    for name in COMMANDS[command].config.__dataclass_fields__:
        assert f"--{name} " in text
    assert "default: " in text and "--config" in text and "--json" in text


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["pretrain", "--data", "x", "--out", "y", "--mask_ration", "0.9"],
            "--mask_ration; did you mean --mask_ratio?",
        ),
        (["pretrain", "--data", "x", "--out", "y", "--lr", "0.1"], "unknown flag --lr; did you mean --base_lr?"),
        (["pretrain", "--out", "y"], "pretrain: --data must be given"),
        (["pretrain", "--data", "x", "--out", "y", "--epochs", "few"], "epochs=few: must be int"),
        (["pretrain", "--data", "x", "--out", "y", "--beta", "big"], "beta=big: must be float | null"),
        (["pretrain", "--config", "dmo"], "config='dmo': no such file, and no recipe of that name; did"),
        (["pretrain", "--data", "/nowhere", "--out", "y"], "/nowhere"),
        (["pretrane"], "unknown command 'pretrane'; did you mean pretrain?"),
        ([], "name a command: demo, pretrain"),
        (["bench"], "name a command: step, data, flops (emae bench COMMAND --help)"),
        (["bench", "stp"], "unknown command bench 'stp'; did you mean bench step?"),
        (["bench", "step", "--roundz", "3"], "bench step: unknown flag --roundz; did you mean --rounds?"),
        (["info", "--model", "mae_vit_bse_patch16"], "did you mean mae_vit_base_patch16?"),
        (["knn", "--weights", "/nowhere"], "/nowhere: no such file or directory"),
        (["report", "--run", "/nowhere"], "/nowhere"),
        (["reconstruct", "--weights", "/nowhere", "--image", "a.png"], "/nowhere: no such file or directory"),
    ],
)
def test_what_the_user_can_mend_is_one_line_and_status_2(
    arguments: list[str],
    said: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
):
    monkeypatch.chdir(tmp_path)
    status, out, err = run(capsys, *arguments)
    assert status == 2 and out == ""
    assert len(err.splitlines()) == 1 and err.startswith("emae: ") and said in err
    assert not any(tmp_path.iterdir())


@pytest.fixture
def broken(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs `emae` where a library is what this says."""

    def run_with(library: str, content: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        (tmp_path / library).mkdir()
        (tmp_path / library / "__init__.py").write_text(content)
        path = os.pathsep.join((str(tmp_path), *filter(None, (os.environ.get("PYTHONPATH"),))))
        return subprocess.run(
            [*EMAE, *arguments], env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True
        )

    return run_with


def test_help_is_there_before_torch_is(broken):
    done = broken("torch", "raise OSError('libcudart.so: cannot open shared object file')", "--help")
    assert done.returncode == 0 and done.stderr == ""
    assert all(command.split()[0] in done.stdout for command in COMMANDS)


@pytest.mark.parametrize(
    ("library", "content", "said"),
    [
        ("torch", "raise OSError('libcudart.so: no such file')", "torch: libcudart.so: no such file"),
        ("torch", "", "cannot import name 'Tensor' from 'torch' ("),
        ("torch", "raise AttributeError('no attribute')", "torch: AttributeError: no attribute"),
        ("torch", "raise ValueError('dtype size\\nchanged')", "torch: ValueError: dtype size changed"),
        ("torch", "def cut_short(", "SyntaxError: "),
        ("torchvision", "raise RuntimeError('operator nms')", "torchvision: RuntimeError: operator nms"),
        ("timm", "import torch; torch.nothing", "AttributeError: module 'torch' has no attribute 'nothing'"),
        # What the command line itself is made of.
        ("jsonargparse", "raise ImportError('half installed')", "jsonargparse: half installed"),
        ("rich", "", "No module named 'rich."),
    ],
)
def test_a_library_that_cannot_be_imported_is_one_line(library: str, content: str, said: str, broken):
    done = broken(library, content, "doctor")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("emae: a library cannot be imported (") and said in done.stderr
    assert done.stderr.endswith("): install it again; torch and torchvision must match\n")
    assert done.stderr.count("\n") == 1


def test_a_library_that_is_imported_when_it_is_used(broken, tmp_path: Path):
    settings = {**TINY, "num_workers": 0, "data": "fashion-mnist-sample", "out": tmp_path / "run"}
    (tmp_path / "torchmetrics.py").write_text("raise ImportError('pre-training has no use for it')")
    done = broken("tensorboard", "raise ImportError('half installed')", "pretrain", *flags(**settings))
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "emae: a library cannot be imported (tensorboard: half installed)" in done.stderr.splitlines()[-1]


def test_our_own_faults_are_not_a_librarys():
    with pytest.raises(ImportError) as ours:
        from efficient_mae.errors import nothing  # noqa: F401 # pyright: ignore
    with pytest.raises(NameError) as name:
        exec("nothing", {"__name__": "efficient_mae.data"})
    assert broken_library(ours.value) is None and broken_library(name.value) is None


def test_report_is_still_told_its_run_by_weights(trained: Path, capsys: pytest.CaptureFixture[str]):
    for given in (["--weights", str(trained)], [f"--weights={trained}"]):
        status, out, err = run(capsys, "report", *given, "--json")
        assert status == 0 and json.loads(out) == {"report": str(trained / "report.html")}
        assert err == "emae: report --weights is now called --run, as in emae replay; the old name still works\n"
    status, out, err = run(capsys, "report", "--run", str(trained), "--json")
    assert (status, json.loads(out), err) == (0, {"report": str(trained / "report.html")}, "")


def test_unknown_keys_of_a_configuration(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    file = tmp_path / "recipe.yaml"
    file.write_text("data: x\nout: y\ngama: 0.5\n")
    status, _, err = run(capsys, "pretrain", "--config", str(file))
    assert status == 2 and "unknown key 'gama' in the configuration; did you mean gamma?" in err


def test_flags_override_a_recipe_and_print_config_shows_it(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        main(["pretrain", "--config", "demo", "--out", "somewhere", "--gamma", "0.4", "--print_config"])
    settings = yaml.safe_load(capsys.readouterr().out)
    assert (settings["gamma"], settings["data"], settings["img_size"]) == (0.4, "fashion-mnist-sample", 28)


def test_report_reads_files_of_earlier_versions(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "old.yaml").write_text(f"weights: {trained}\n")
    expected = {"report": str(trained / "report.html")}
    status, out, err = run(capsys, "report", "--config", str(tmp_path / "old.yaml"), "--json")
    assert (status, err) == (0, "") and json.loads(out) == expected
    assert emae.report(config=tmp_path / "old.yaml").plain() == expected
    (tmp_path / "old.yaml").write_text(f"weights: {trained}\nrun: {trained}\n")
    assert run(capsys, "report", "--config", str(tmp_path / "old.yaml"))[0] == 2


@pytest.mark.parametrize(
    ("model", "settings"),
    [
        ("mae_vit_tiny_patch8", []),
        ("cae_vit_tiny_patch8", []),
        ("beit_vit_tiny_patch8", []),
        ("maskfeat_vit_tiny_patch8", []),
        ("simmim_vit_tiny_patch8", ["--mask_unit", "8"]),
        ("simmim_swin_tiny_window4", ["--mask_unit", "8", "--depth", "1,1"]),
    ],
)
def test_info_is_shown_of_every_method(model: str, settings: list[str], capsys: pytest.CaptureFixture[str]):
    status, out, _ = run(capsys, "info", "--model", model, "--img_size", "32", *settings, "--device", "cpu")
    assert status == 0 and "GMACs an image" in out and "M parameters" in out


def test_info_as_json(capsys: pytest.CaptureFixture[str]):
    status, out, _ = run(capsys, "info", "--model", "mae_vit_base_patch16", "--json")
    result = json.loads(out)
    assert status == 0
    # ViT-B/16: 86 M parameters (85.8 without a head, of which the fixed positions aren't learned).
    assert result["cost"]["encoder_parameters"] / 1e6 == pytest.approx(85.65, abs=0.05)
    assert result["cost"]["encoder_tokens"] == 30 and result["cost"]["masked_patches"] == 167
    assert result["cost"]["mae_gmacs"] == pytest.approx(9.78, rel=0.05)
    assert {"torch", "cores", "precision"} <= result["environment"].keys()


def test_info_of_weights_that_others_wrote(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    import timm.models.vision_transformer as timm_vit
    from safetensors.torch import save_file

    vit = timm_vit.VisionTransformer(
        img_size=(32, 32), patch_size=8, embed_dim=192, depth=2, num_heads=3, num_classes=7
    )
    save_file(vit.state_dict(), tmp_path / "vit.safetensors")
    found = printed(capsys, tmp_path / "vit.safetensors")
    learned = sum(value.numel() for value in vit.parameters()) - (192 * 7 + 7)
    assert found["weights"] | {"path": "", "mean": [], "std": []} == {
        "path": "", "kind": "a file of another software", "mean": [], "std": [],
        "taken": learned, "left_out": {"head.weight": 192 * 7, "head.bias": 7},
    }  # fmt: skip
    assert found["cost"]["encoder_parameters"] == learned - 17 * 192  # positions aren't learned here
    # 2 blocks of 17 tokens: 12 D^2 each, and attention's 2 N D; the patches' 3 x 8 x 8 D.
    by_hand = 2 * (17 * 12 * 192**2 + 2 * 17**2 * 192) + 16 * 192 * 192
    assert found["cost"]["gmacs"] == pytest.approx(by_hand / 1e9, rel=1e-3)
    assert (found["model"]["depth"], found["model"]["img_size"]) == (2, [32, 32])
    status, out, _ = run(capsys, "info", "--weights", str(tmp_path / "vit.safetensors"))
    assert status == 0 and "1,351 left out (head" in out and "16 patches of 8 px" in out and "decoder" not in out


def printed(capsys: pytest.CaptureFixture[str], weights: Path) -> dict:
    status, out, err = run(capsys, "info", "--weights", str(weights), "--json")
    assert status == 0, err
    return json.loads(out)


def test_info_of_a_run(trained: Path, capsys: pytest.CaptureFixture[str]):
    status, out, err = run(capsys, "info", "--weights", str(trained))
    assert status == 0 and "16 x 16, 1 channels, 16 patches of 4 px" in out, err


def test_pretrain_leaves_a_report_and_says_how_to_load(trained: Path, capsys: pytest.CaptureFixture[str]):
    assert (trained / "report.html").stat().st_size > 10_000
    status, out, err = run(capsys, "pretrain", "--config", str(trained / "config.yaml"))
    assert status == 0 and "is finished" in err
    assert f'timm.create_model("local-dir:{trained}", pretrained=True)' in out and "report.html" in out


def test_knn_of_a_run_on_its_own_data(trained: Path, capsys: pytest.CaptureFixture[str]):
    status, out, _ = run(capsys, "knn", "--weights", str(trained), "--k", "3", "--num_workers", "0", "--json")
    result = json.loads(out)
    assert status == 0 and (result["train_images"], result["test_images"]) == (24, 24)
    assert result["accuracy"].keys() == {"raw_pixels", "untrained", "trained"}


def test_reconstruct(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    photo = tmp_path / "photo.jpg"
    Image.linear_gradient("L").resize((90, 60)).convert("CMYK").save(photo)
    picture = tmp_path / "picture.png"
    arguments = ["reconstruct", *flags(weights=trained, image=photo, out=picture)]
    status, _, _ = run(capsys, *arguments)
    assert status == 0
    with Image.open(picture) as image:
        assert image.width > 300
    Image.new("RGB", (3, 30)).save(photo)
    status, _, err = run(capsys, *arguments)
    assert status == 2 and "3 x 30 pixels are less than a patch of 4 x 4" in err
    photo.write_text("no photo")
    status, _, err = run(capsys, *arguments)
    assert status == 2 and len(err.splitlines()) == 1 and "photo.jpg" in err
    status, _, err = run(capsys, "reconstruct", *flags(weights=trained, image=photo, out=tmp_path / "no" / "p.png"))
    assert status == 2 and "make it first" in err
    encoder = trained / "encoder.safetensors"
    status, _, err = run(capsys, "reconstruct", *flags(weights=encoder, image=photo, out=picture))
    assert status == 2 and "a decoder is needed" in err


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        (["--img_size", "32,64"], ["--img_size", "[32, 64]"]),
        (["--img_size=32,64"], ["--img_size", "[32, 64]"]),
        (["--compile", "--gamma", "0.5"], ["--compile", "true", "--gamma", "0.5"]),
        (["--norm_pix_loss", "--gamma", "0.5"], ["--norm_pix_loss", "true", "--gamma", "0.5"]),
        (["--gamma", "0.5", "--norm_pix_loss"], ["--gamma", "0.5", "--norm_pix_loss", "true"]),
    ],
)
def test_values_as_people_write_them(capsys: pytest.CaptureFixture[str], written: list[str], meant: list[str]):
    model = ["info", "--model", "mae_vit_tiny_patch16", "--json"]
    assert run(capsys, *model, *written) == run(capsys, *model, *meant)


def test_one_number_alone_where_several_may_stand(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    photo = Image.new("RGB", (40, 40), "red")
    photo.save(tmp_path / "photo.png")
    tried = flags(data=tmp_path, seconds=0.1, model="mae_vit_tiny_patch16", img_size=64, num_workers=0, batch_size=1)
    status, out, _ = run(capsys, "bench", "data", *tried, "--json")
    assert status == 0 and [row["num_workers"] for row in json.loads(out)["loaders"]] == [0]


@pytest.mark.parametrize("shown", [["--list"], ["--list", "true"], ["--list=true"]])
def test_a_switch_alone_is_on(capsys: pytest.CaptureFixture[str], shown: list[str]):
    status, out, _ = run(capsys, "study", *shown, "--preset", "smoke", "--json")
    assert status == 0 and json.loads(out)["studies"]


@pytest.mark.parametrize(("model", "img_size"), [("mae_vit_base_patch16", 10**8), ("mae_vit_tiny_patch4", 4 * 10**6)])
def test_what_no_memory_holds_is_one_line(model: str, img_size: int, capsys: pytest.CaptureFixture[str]):
    status, _, err = run(capsys, "info", "--model", model, "--img_size", str(img_size), "--device", "cpu")
    said = r"there is not enough memory: [\d,.]+ GiB were asked for at once; take a smaller model, image or batch"
    assert status == 2 and re.fullmatch(rf"emae: {said}\n", err)
