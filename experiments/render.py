"""Renders an episode of a run's last checkpoint.

    python -m experiments.render --run_dir=FOLDER

Writes episode.gif, which any browser plays, into the run folder.
"""

from collections.abc import Sequence

from absl import flags

from experiments.reports import animation
from experiments.runs import command_flags, paths, progress, registry


def main(argv: Sequence[str]) -> None:
    values = flags.FlagValues()
    flags.DEFINE_string("run_dir", None, "folder of the run", flag_values=values)
    flags.DEFINE_integer("seed", 0, "of the episode", 0, flag_values=values)
    flags.DEFINE_integer("run", 0, "which of several seeds", 0, flag_values=values)
    flags.DEFINE_string("output", "", "default: episode.gif", flag_values=values)
    meaning = "that of the run again: needed if it is a module, as MODULE:FUNCTION"
    flags.DEFINE_string("env", "", meaning, flag_values=values)
    if command_flags.parse_or_help(values, argv, __doc__, required="run_dir"):
        return
    folder = paths.expanded(values.run_dir)
    run = registry.load(folder, progress.report, values.env)
    path = paths.expanded(values.output) if values.output else folder / "episode.gif"
    animation.episode(run, path, values.seed, values.run)
    print(path)


if __name__ == "__main__":
    command_flags.command(main)
