"""Upload a package to the Hugging Face hub."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from timm_accel.messages import one_line, root_cause
from timm_accel.models import CONFIG_FILE, WEIGHTS_FILE
from timm_accel.sharing.package import CARD, EXAMPLE, MODEL, PROGRAM, export_package

_FILES = (CARD, CONFIG_FILE, WEIGHTS_FILE, MODEL, f"{MODEL}.????????.data", PROGRAM, EXAMPLE)


def push_to_hub(
    source: str | Path,
    repo_id: str,
    *,
    private: bool = False,
    license: str = "unknown",
    example: bool = True,
    token: str | None = None,
) -> str:
    """Upload a trained model to the Hugging Face hub, with the files of `export_package` and nothing else.

    The repository is created if it does not exist; files of the same names are replaced.

    Args:
        source: A folder of `export_package`, or what that takes: the folder of a run, or a folder of weights.
        repo_id: The repository, ``USER/NAME`` or ``ORGANIZATION/NAME``; ``NAME`` is one of the token's user.
        private: Whether a new repository is private.
        license: The license for the card; for a run or weights only.
        example: Whether an evaluation image is in the package; for a run or weights only.
        token: The token; None for that of ``hf auth login`` or of the variable ``HF_TOKEN``.

    Returns:
        The address of the commit.

    Raises:
        ConnectionError: The hub cannot be reached, or it refuses the upload.
        PermissionError: There is no token.
        ValueError: `repo_id` is no name of a repository.

    Source: ``HfApi.upload_folder``. timm's ``push_to_hf_hub`` (1.0.31) writes another card, and also uploads a
    pickle.
    """
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ValueError(
            f"Expected repo_id to be such as 'user/name', but got {repo_id!r} ({one_line(error)}). Correct it."
        ) from error
    if (token := token or get_token()) is None:
        raise PermissionError(
            "Expected a token of the Hugging Face hub that may write, but got none. Run hf auth login, or set HF_TOKEN."
        )
    source = Path(source)
    with TemporaryDirectory() as temporary:
        if all((source / name).is_file() for name in (CARD, MODEL, PROGRAM)):
            package = source
        else:
            name = repo_id.rpartition("/")[2]
            package = export_package(source, Path(temporary) / name, license=license, example=example)
        with _errors_explained(repo_id):
            api = HfApi(token=token, library_name="timm_accel")
            repository = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
            return str(api.upload_folder(repo_id=repository, folder_path=package, allow_patterns=list(_FILES)))


@contextmanager
def _errors_explained(repo_id: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # huggingface_hub passes on the errors of its HTTP library, which changed with 1.0
        raise ConnectionError(
            f"Expected the Hugging Face hub to take {repo_id!r}, but got {root_cause(error)}. Check the network, the "
            "name, and that the token may write."
        ) from error
