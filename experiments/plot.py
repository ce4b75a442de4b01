"""Draws learning curves and model diagnostics from run folders.

    python -m experiments.plot --run_dir=FOLDER[,FOLDER...]

One folder: learning_curve.png and diagnostics.png in it.  Several: their learning
curves in one picture, at --output.
"""

from collections.abc import Sequence

from absl import flags

from experiments.reports import plots
from experiments.runs import command_flags, paths


def main(argv: Sequence[str]) -> None:
    values = flags.FlagValues()
    flags.DEFINE_string("run_dir", None, "folders of runs", flag_values=values)
    meaning = "learning curve; default: learning_curve.png in the only folder"
    flags.DEFINE_string("output", "", meaning, flag_values=values)
    if command_flags.parse_or_help(values, argv, __doc__, required="run_dir"):
        return
    folders = paths.several(values.run_dir)
    if len(folders) > 1 and not values.output:
        raise flags.Error("several folders need an --output")
    path = paths.expanded(values.output or str(folders[0] / "learning_curve.png"))
    plots.learning_curve(folders, path)
    print(path)
    if len(folders) == 1 and (folders[0] / "diagnostics.json").exists():
        plots.diagnostics(folders[0], folders[0] / "diagnostics.png")
        print(folders[0] / "diagnostics.png")


if __name__ == "__main__":
    command_flags.command(main)
