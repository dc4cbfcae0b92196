"""``flaxbert push``: uploads a model folder to the hub."""


def run(
    folder: str,
    repository: str,
    revision: str = "main",
    private: bool = False,
    message: str = "",
    dry_run: bool = False,
) -> int:
    """Uploads a model folder to the hub in one commit; a folder without model card gets a short one.

    Args:
      folder: The model folder.
      repository: Id on the hub, owner/name; made where it does not exist.
      revision: Branch; made where it does not exist.
      private: Make a new repository private.
      message: Commit message.
      dry_run: Only say what would be uploaded; contacts nobody.

    Returns:
      The exit code.
    """
    from flaxbert.weights.push import plan_upload, upload

    plan = plan_upload(folder, repository, revision=revision, private=private, message=message)
    print(plan.to_text())
    if dry_run:
        print("Nothing was uploaded (dry run).")
        return 0
    print(f"Uploaded: {upload(plan)}")
    return 0
