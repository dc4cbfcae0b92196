"""``flaxbert convert``: writes a checkpoint of any readable format as a folder that stock transformers loads."""


def run(source: str, output: str, task: str | None = None, vocab_size: int = 0) -> int:
    """Reads a checkpoint of any format and writes it as safetensors with config.json, tokenizer and manifest.

    Args:
      source: Folder or hub id of the checkpoint.
      output: New folder to write.
      task: Task to load it for; default what the folder holds.
      vocab_size: Rows of the word embedding to write; new ones are the mean of the others. 0 keeps the number.

    Returns:
      The exit code.
    """
    from flaxbert.cli.compression import check_output

    folder = check_output(output)
    from flaxbert.core.runtime import configure

    configure()
    import flaxbert
    from flaxbert.transforms import resize_vocabulary

    model = flaxbert.load(source, task=task)
    if model.account is not None:
        print(model.account.summary())
    if vocab_size:
        params = resize_vocabulary(model.params, vocab_size)
        model = model.replace(params=params, config=model.config.replace(vocab_size=vocab_size))
    model.save(folder)
    print(f"Saved to {output}.")
    return 0
