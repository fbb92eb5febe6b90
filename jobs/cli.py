"""`sidstream`: one subcommand a module of `jobs/`, imported only when it is used, so that help and status answer at once."""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass

import click


@dataclass(frozen=True)
class Subcommand:
    module: str
    help: str
    part: str  # heading under which the help lists it


SUBCOMMANDS: dict[str, Subcommand] = {
    "up": Subcommand("jobs.up", "Start everything (or --only some parts) and keep it running.", "The whole system"),
    "status": Subcommand("jobs.status", "Say how each part is.", "The whole system"),
    "logs": Subcommand("jobs.logs", "Show what the parts log.", "The whole system"),
    "down": Subcommand("jobs.down", "Stop what `up` started.", "The whole system"),
    "doctor": Subcommand("jobs.doctor", "Say what is missing or unreachable, and how to mend it.", "The whole system"),
    "demo": Subcommand("jobs.demo", "The whole loop on simulated users or a real log, with a report.", "Input"),
    "simulate": Subcommand("jobs.simulate", "Simulated users who answer our own feed.", "Input"),
    "replay": Subcommand("jobs.replay", "A real log into the topics, in event-time order.", "Input"),
    "samples": Subcommand("jobs.samples", "Flink: impressions and labels become training samples.", "One process each"),
    "features": Subcommand("jobs.features", "Feast features: apply, plan, run, write, backfill, verify.", "One process each"),
    "inspect": Subcommand("jobs.inspect", "Dead letters and the live clock of the topics.", "One process each"),
    "train": Subcommand("jobs.train", "Learn from samples as they come, publish versions.", "One process each"),
    "serve": Subcommand("jobs.serve", "The HTTP service and its page.", "One process each"),
    "generate": Subcommand("jobs.generate", "Make the videos that were asked for and do not exist.", "One process each"),
    "topics": Subcommand("jobs.topics", "Create the topics of the configuration.", "Preparation"),
    "sids": Subcommand("jobs.sids", "Build semantic IDs for a catalogue; report on their quality.", "Preparation"),
    "gdpo": Subcommand("jobs.gdpo", "Align the model with its rewards.", "Later work"),
    "experiment": Subcommand("jobs.experiment", "Compare methods on one log.", "Later work"),
}


class Sidstream(click.Group):
    """A group whose subcommands are modules."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [name for name, subcommand in SUBCOMMANDS.items() if importlib.util.find_spec(subcommand.module)]

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in self.list_commands(ctx):
            return None
        return importlib.import_module(SUBCOMMANDS[name].module).command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The help, without importing any subcommand."""
        available = self.list_commands(ctx)
        for heading in dict.fromkeys(subcommand.part for subcommand in SUBCOMMANDS.values()):
            rows = [(name, SUBCOMMANDS[name].help) for name in available if SUBCOMMANDS[name].part == heading]
            if rows:
                with formatter.section(heading):
                    formatter.write_dl(rows)


@click.group(cls=Sidstream, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(package_name="sidstream")
def main() -> None:
    """Streaming online learning for Recommendation-as-Generation.

    \b
    First steps:
      sidstream doctor          is everything there?
      sidstream up              start it; Ctrl-C stops it
      sidstream simulate        in another shell: users who watch
      sidstream status          how each part is

    Data, logs and addresses (state.json) are in SIDSTREAM_HOME, by default var/. Every process takes --config FILE, a YAML
    file whose keys all have defaults; with kafka.bootstrap and redis.url in it a process runs against your own clusters.
    """


if __name__ == "__main__":
    main()
