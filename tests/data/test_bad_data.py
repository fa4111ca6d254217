"""Bad input to the data, model and recipe builders and to the example: one sentence, and nothing written over."""

import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import write_images
from forked import run
from refusal import contents, refused
from tiny_runs import fit, make_trainer, parse_recipe
from torch import nn

from timm_accel import Recipe, create_classifier, create_datasets
from timm_accel.callbacks import UnreadableImagesCallback
from timm_accel.commands.main import main
from timm_accel.data import ImageFolderDataset
from timm_accel.recipes import build_run

ROOT = Path(__file__).parents[2]
SMALL = ["--model", "test_resnet", "--image_size", "16", "--num_epochs", "1", "--batch_size", "4", "--num_workers", "0",
         "--warmup_epochs", "0"]  # fmt: skip
CLASSES = {"cat": 4, "dog": 4}


def read(data_dir: Path, size: Any = 8, **options: Any) -> tuple[ImageFolderDataset, ImageFolderDataset]:
    options = {"auto_augment": None} | options
    return create_datasets(size, (0.5,) * 3, (0.5,) * 3, data_dir / "train", data_dir / "val", **options)


def write_splits(root: Path, **splits: dict[str, int]) -> Path:
    for name, counts in splits.items():
        write_images(root / name, counts)
    return root


def nothing(root: Path) -> None:
    pass


def empty(root: Path) -> None:
    (root / "train").mkdir(parents=True)
    (root / "val").mkdir()


def without_train(root: Path) -> None:
    write_splits(root, val=CLASSES)


def without_val(root: Path) -> None:
    write_splits(root, train=CLASSES)


def text_alone(root: Path) -> None:
    write_splits(root, val=CLASSES)
    (root / "train" / "cat").mkdir(parents=True)
    (root / "train" / "cat" / "notes.txt").write_text("no image")


def one_class(root: Path) -> None:
    write_splits(root, train={"cat": 4}, val={"cat": 2})


def no_class(root: Path) -> None:
    write_splits(root, train={".": 4}, val={".": 2})


def stray_image(root: Path) -> None:
    write_splits(root, train=CLASSES | {".": 1}, val=CLASSES)


def other_classes(root: Path) -> None:
    write_splits(root, train={"cat": 4, "dog": 4}, val={"cat": 2, "owl": 2})


def fewer_classes(root: Path) -> None:
    write_splits(root, train={"cat": 4, "dog": 4, "owl": 4}, val={"cat": 2, "dog": 2})


FOLDER = "one folder of images for each class"
BAD_FOLDERS: list[tuple[Callable[[Path], None], type[Exception], tuple[str, ...]]] = [
    (nothing, FileNotFoundError, (FOLDER, "got '{}/train'", "not a folder", "Correct the path")),
    (empty, FileNotFoundError, (FOLDER, "got '{}/train'", "no images", "Correct the path")),
    (without_train, FileNotFoundError, (FOLDER, "got '{}/train'", "not a folder", "Correct the path")),
    (without_val, FileNotFoundError, (FOLDER, "got '{}/val'", "not a folder", "Correct the path")),
    (
        text_alone,
        FileNotFoundError,
        (FOLDER, "got '{}/train'", "all of whose files are left out: 1 file (1 .txt)", "Correct the path"),
    ),
    (one_class, ValueError, ("at least two classes", "got ['cat']", "'{}/train'", "separate folder")),
    (no_class, ValueError, (FOLDER, "got '{}/train/000.png'", "Move it into the folder of its class")),
    (stray_image, ValueError, (FOLDER, "got '{}/train/000.png'", "Move it into the folder of its class")),
    (other_classes, ValueError, ("same classes", "'{}/val'", "lacks ['dog']", "has ['owl']", "Move the folders")),
    (fewer_classes, ValueError, ("same classes", "'{}/val'", "which lacks ['owl']. Move the folders")),
]


@pytest.mark.parametrize(("make", "error", "words"), BAD_FOLDERS)
def test_a_bad_data_folder_is_refused(
    make: Callable[[Path], None], error: type[Exception], words: tuple[str, ...], tmp_path: Path
) -> None:
    make(tmp_path / "data")
    with refused(error, *(word.format(tmp_path / "data") for word in words)):
        read(tmp_path / "data")


BAD_SOURCES: dict[Callable[[Path], None], tuple[type[Exception], tuple[str, ...]]] = {  # where the example says more
    nothing: (FileNotFoundError, (FOLDER, "got '{}'", "not a folder", "Correct the path")),
    without_train: (ValueError, ("a split 'train' in '{}'", "got ['val'] alone")),
    without_val: (ValueError, ("a split 'val' in '{}'", "got ['train'] alone")),
}


@pytest.mark.parametrize(("make", "error", "words"), BAD_FOLDERS)
def test_the_example_refuses_a_bad_data_folder_and_writes_nothing(
    make: Callable[[Path], None], error: type[Exception], words: tuple[str, ...], tmp_path: Path
) -> None:
    make(tmp_path / "data")
    error, words = BAD_SOURCES.get(make, (error, words))
    before = contents(tmp_path)
    recipe = parse_recipe(["--data_dir", str(tmp_path / "data"), "--run_dir", str(tmp_path / "run"), *SMALL])
    with refused(error, *(word.format(tmp_path / "data") for word in words)):
        build_run(recipe)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("size", [0, -3, 2.5, "8", None, (8,), (8, 8, 8), (8, 0)])
def test_a_bad_image_size_is_refused(size: Any, image_folder: Path) -> None:
    words = ("image_size", "at least 1", "(height, width)", f"got {size!r}", "Usual sizes")
    with refused(ValueError, *words):
        read(image_folder, size)
    if size is not None:  # there it means the model's own
        with refused(ValueError, *words):
            create_classifier("test_resnet", 3, image_size=size)


@pytest.mark.parametrize("policy", ["nonsense", "rnd-m7", "rand-q7"])
def test_an_unknown_augmentation_policy_is_refused(policy: str, image_folder: Path) -> None:
    with refused(ValueError, "auto_augment", f"got {policy!r}", "'rand-m7-mstd0.5-inc1'", "None"):
        read(image_folder, auto_augment=policy)


# Images that cannot be read


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def break_one(root: Path, form: str) -> Path:
    """Put an image that cannot be read after the first of a class, and return its path."""
    path = root / "cat" / f"001-broken.{'jpg' if form == 'jpg' else 'png'}"
    if form == "text":
        path.write_text("hello")
    elif form == "nothing":
        path.touch()
    else:
        from PIL import Image

        Image.effect_noise((64, 64), 50).convert("RGB").save(path)
        truncated(path)
    return path


@pytest.mark.parametrize("form", ["png", "jpg", "text", "nothing"])
def test_an_unreadable_image_is_named_and_never_replaced_unless_asked_to(form: str, image_folder: Path) -> None:
    path = break_one(image_folder / "train", form)
    train, _ = read(image_folder, on_error="raise")
    broken = [index for index in range(len(train)) if train.filename(index, absolute=True) == str(path)]
    assert len(train) == 20
    assert len(broken) == 1
    with refused(OSError, "readable image", f"got '{path}'", "Repair or remove it"):
        train[broken[0]]
    for index in {*range(20)} - {*broken}:
        assert train[index][0].shape == (3, 8, 8)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("form", ["png", "jpg", "text"])
def test_an_unreadable_image_stops_the_run_with_its_name(form: str, workers: int, image_folder: Path) -> None:
    path = break_one(image_folder / "train", form)
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 3))
    kwargs = {"num_workers": workers}
    with pytest.raises(OSError, match=f"readable image, but got '{path}'.* Repair or remove it"):
        fit(make_trainer(model=model), read(image_folder, on_error="raise")[0], train_dataloader_kwargs=kwargs)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_evaluation_image_stops_the_run_before_the_first_epoch(workers: int, image_folder: Path) -> None:
    path = break_one(image_folder / "val", "png")
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 3))
    trainer = make_trainer(model=model, callbacks=[UnreadableImagesCallback])
    with pytest.raises(OSError, match=f"readable image, but got '{path}'.* Repair or remove it"):
        fit(trainer, *read(image_folder, on_error="raise"), eval_dataloader_kwargs={"num_workers": workers})
    assert trainer.num_updates == 0


# Models and recipes


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("resnt50", ("got 'resnt50'", "Did you mean 'resnet50'", "timm.list_models()")),
        ("test_resnet.r160", ("got 'test_resnet.r160'", "Did you mean 'test_resnet.r160_in1k'")),
        ("?", ("got '?'", "Known names: ", "timm.list_models()")),
    ],
)
def test_an_unknown_model_is_refused(name: str, words: tuple[str, ...]) -> None:
    with refused(ValueError, "Expected model to be", *words):
        create_classifier(name, 3)
    with refused(ValueError, "Expected model to be", *words):
        Recipe(model=name)


def test_a_classifier_of_one_class_is_refused() -> None:
    with refused(ValueError, "num_classes", "at least 2", "got 1", "Count the classes"):
        create_classifier("test_resnet", 1)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("opt", "adamv", ("timm knows", "got 'adamv'", "Did you mean 'adam'")),
        ("opt", "lookahead_adamv", ("timm knows", "got 'lookahead_adamv'", "Did you mean 'lookahead_adam'")),
        ("opt", "lookahed_adamw", ("timm knows", "got 'lookahed_adamw'", "Did you mean 'lookahead_adamw'")),
        ("sched", "cosin", ("timm knows", "got 'cosin'", "Did you mean 'cosine'")),
        ("clip_mode", "nrom", ("timm knows", "got 'nrom'", "Did you mean 'norm'")),
        ("batch_size", 31, ("even", "Mixup", "got 31", "default is 32")),
        ("batch_size", 1, ("even", "Mixup", "got 1", "default is 32")),
        ("batch_size", 0, ("at least 1", "got 0", "default is 32")),
        ("batch_size", "32", ("integer", "got '32'", "default is 32")),
        ("image_size", 0, ("at least 1", "got 0", "default is 224")),
        ("num_epochs", 2.5, ("integer", "got 2.5", "default is 40")),
        ("gradient_accumulation_steps", 0, ("at least 1", "got 0", "default is 1")),
        ("lr", 0.0, ("positive", "got 0.0", "default is 0.005")),
        ("lr", float("nan"), ("positive", "got nan", "default is 0.005")),
        ("clip_grad", -1.0, ("positive", "got -1.0", "default is None")),
        ("mixup", -0.1, ("at least 0", "got -0.1", "default is 0.2")),
        ("mixup_off_epoch", -1, ("at least 0", "got -1", "default is None")),
        ("num_workers", -1, ("at least 0", "got -1", "default is None")),
        ("hflip", 1.5, ("between 0 and 1", "got 1.5", "default is 0.5")),
        ("smoothing", None, ("from 0 to below 1", "got None", "default is 0.1")),
        ("ema_decay", 1.0, ("below 1", "got 1.0", "default is None")),
        ("ema_decay", "0.9", ("below 1", "got '0.9'", "default is None")),
        ("scale", (1.0, 0.5), ("rising", "got (1.0, 0.5)", "default is (0.08, 1.0)")),
        ("scale", (0.5,), ("two", "got (0.5,)", "default is (0.08, 1.0)")),
    ],
)
def test_a_bad_option_of_a_recipe_is_refused(name: str, value: Any, words: tuple[str, ...]) -> None:
    with refused(ValueError, f"Expected {name} to be ", *words):
        Recipe(**{name: value})


def test_an_odd_batch_is_accepted_by_a_recipe_that_does_not_mix() -> None:
    assert Recipe(batch_size=31, mixup=0.0, cutmix=0.0).batch_size == 31


# The command line


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--ema_decy", "0.9"], ("Expected an option", "got 'ema_decy'", "Did you mean 'ema_decay'")),
        (["--ema_decy=0.9"], ("Expected an option", "got 'ema_decy'", "Did you mean 'ema_decay'")),
        (["--loss", "bec"], ("Expected loss to be one of bce, ce", "got 'bec'", "--help")),
        (["--class_weights", "equal"], ("class_weights to be one of auto, list[float], dict[str, float]", "'equal'")),
        (["--recipe", "a33"], ("Expected the name of a recipe", "got 'a33'", "Did you mean 'a3'")),
        (["--data", "folder"], ("Expected an option", "got 'data'", "or 'data_dir'")),  # no abbreviations
        (["--confg", "my.yaml"], ("Expected an option", "got 'confg'", "Did you mean 'config'")),
        (["photos"], ("Expected an option", "got 'photos'", "Known names: 'auto_augment'")),
        (["--batch_size", "many"], ("Expected batch_size to be int", "got 'many'", "--help")),
        (["--clip_grad", "much"], ("Expected clip_grad to be float | None", "got 'much'", "--help")),
        (["--pretrained", "maybe"], ("Expected pretrained to be bool", "got 'maybe'", "--help")),
        (["--scale", "[0.5]"], ("Expected scale to be tuple[float, float]", "got '[0.5]'", "--help")),
        (["--lr"], ("--help", "--lr", "one argument")),
        (["--config", "/no/such.yaml"], ("--config to be a YAML file", "'/no/such.yaml'", "does not exist", "Correct")),
        (["--config", "/usr"], ("--config to be a YAML file", "'/usr', which is not a file", "Correct")),
        (["--batch_size", "big"], ("Expected batch_size to be int or one of auto", "got 'big'", "--help")),
        (["--model", "resnt50"], ("Expected model to be", "got 'resnt50'", "Did you mean 'resnet50'")),
        (["--batch_size", "31"], ("Expected batch_size to be even", "got 31", "default")),
    ],
)
def test_a_bad_argument_is_refused(arguments: list[str], words: tuple[str, ...]) -> None:
    with refused(ValueError, *words):
        parse_recipe(arguments)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("ema_decy: 0.9", ("Expected an option", "got 'ema_decy'", "Did you mean 'ema_decay'")),
        ("batch_size: many", ("Expected batch_size to be int", "got 'many'", "--help")),
        ("lr: fast", ("Expected lr to be float", "got 'fast'", "--help")),
        ("opt: adamv", ("Expected opt to be", "got 'adamv'", "Did you mean 'adam'")),
        ("- lr", ("config", "a list", "--help")),
        ("{", ("config", "--help")),
    ],
)
def test_a_bad_line_of_a_yaml_file_is_refused(text: str, words: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    with refused(ValueError, *words):
        parse_recipe(["--config", str(tmp_path / "mine.yaml")])


def exit_message(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Run the command in this process, and return the sentence that it ends with."""
    assert main(["train", *arguments]) == 1
    (sentence,) = capsys.readouterr().err.splitlines()[-1:]
    return sentence


def test_the_command_exits_with_the_sentence_and_without_a_traceback(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("ema_decy: 0.9\n")
    result = run(["-m", "timm_accel", "train", "--config", "mine.yaml"], cwd=tmp_path)
    assert result.returncode == 2
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    last = result.stderr.splitlines()[-1]
    assert last == (
        "timm-accel train: Expected an option, but got 'ema_decy'. "
        "Did you mean 'ema_decay' or 'layer_decay' or 'weight_decay'?"
    )
    assert contents(tmp_path) == {"mine.yaml": b"ema_decy: 0.9\n"}


def test_the_command_never_writes_over_a_run(image_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_dir = image_folder / "run"
    run_dir.mkdir()
    (run_dir / "history.csv").write_text("of an earlier run")
    (run_dir / "recipe.yaml").write_text("of an earlier run")
    before = contents(image_folder)
    message = exit_message(capsys, "--data_dir", str(image_folder), "--run_dir", str(run_dir), *SMALL)
    assert message.startswith(
        f"timm-accel train: Expected run_dir to hold no run yet, since runs are never overwritten, but got '{run_dir}'"
    )
    assert contents(image_folder) == before


@pytest.mark.parametrize("workers", ["0", "1"])
def test_the_command_prints_one_sentence_for_an_unreadable_image(
    workers: str, image_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = break_one(image_folder / "val", "png")
    options = [*SMALL, "--run_dir", str(image_folder / "run"), "--num_workers", workers, "--ema_decay", "0",
               "--on_error", "raise"]  # fmt: skip
    message = exit_message(capsys, "--data_dir", str(image_folder), *options)
    assert message.startswith(f"timm-accel train: Expected every file to be a readable image, but got '{path}' (")
    assert message.endswith("Repair or remove it, or pass on_error='skip'.")


def test_the_command_prints_the_sentence_on_a_loss_that_is_not_finite_once(
    image_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [*SMALL, "--run_dir", str(image_folder / "run"), "--opt", "sgd", "--lr", "1e30"]
    assert main(["train", "--data_dir", str(image_folder), *options]) == 1
    out, err = (" ".join(text.split()) for text in capsys.readouterr())
    assert "loss to be finite" not in out
    assert err.count("loss to be finite") == 1


@pytest.mark.parametrize("name", ["set.zip", "set.xlsx", "cat.jpg", "set.json", "set"])
def test_a_file_of_another_kind_is_not_called_a_missing_folder(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"PK")
    path = str(tmp_path / name)
    with refused(
        FileNotFoundError,
        FOLDER,
        f"got {path!r}, a file and not a folder. Pass",
        "a .tar",
        ".csv",
        "unpack other",
    ):
        create_datasets(8, (0.5,) * 3, (0.5,) * 3, data=path)


@pytest.mark.parametrize(("stray", "place"), [("train/000.png", "set"), ("val/a.png", "."), ("train/b.png", "a/b")])
def test_an_image_beside_the_classes_of_a_tar_is_refused_as_in_a_folder(stray: str, place: str, tmp_path: Path) -> None:
    write_splits(tmp_path / "data", train=CLASSES, val=CLASSES)
    shutil.copy(tmp_path / "data" / "train" / "cat" / "000.png", tmp_path / "data" / stray)
    with tarfile.open(tmp_path / "set.tar", "w") as tar:
        tar.add(tmp_path / "data", place)
    with refused(ValueError, FOLDER, f"{stray}' beside the folders", "Move it into the folder of its class"):
        create_datasets(8, (0.5,) * 3, (0.5,) * 3, data=tmp_path / "set.tar")


@pytest.mark.parametrize(
    ("splits", "remedy"),
    [
        (("train", "test"), "Pass eval_split='test', or name a source with that split"),
        (("train", "validation"), None),
        (("val", "test"), "Name a source with that split"),
    ],
)
def test_another_split_to_evaluate_on_is_proposed(splits: tuple[str, str], remedy: str | None, tmp_path: Path) -> None:
    write_splits(tmp_path, **dict.fromkeys(splits, CLASSES))
    for data in (tmp_path, {name: tmp_path / name for name in splits}):
        if remedy is None:
            assert len(create_datasets(8, (0.5,) * 3, (0.5,) * 3, data=data)[1]) == 8
            continue
        with refused(ValueError, "Expected a split", "alone. ", remedy):
            create_datasets(8, (0.5,) * 3, (0.5,) * 3, data=data)
