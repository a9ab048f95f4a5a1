def write(path, summary):
    pass


def show(r, path, console):

    console.print(
        {k: r[k] for k in ("accuracy", "accuracy_calibrated", "rec2ftp", "selection", "seconds")}
    )
