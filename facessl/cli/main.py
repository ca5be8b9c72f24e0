"""The command line: each command parses its flags, calls the library and prints; `cmd_x` is `facessl x`."""

import json
import sys
import threading
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import yaml

from facessl.cli.commandline import call, listed, one_sentence, overview, parsed_words, summary, thread_error
from facessl.cli.data import cmd_crop, cmd_pack
from facessl.cli.embeddings import cmd_embed, cmd_group, cmd_map, cmd_search
from facessl.cli.networks import cmd_app, cmd_convert, cmd_export, cmd_predict, cmd_probe, cmd_regions
from facessl.cli.train import cmd_finetune, cmd_plan, cmd_pretrain
from facessl.config.argument_parser import Parser
from facessl.core import plugins
from facessl.core.errors import FaceSSLError, PluginError, UnknownName
from facessl.core.escape import printable_lines

#: Exit status of a user's error; argparse uses the same.
USER_ERROR = 2


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `facessl`; return the exit status."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    warnings.formatwarning = one_sentence
    threading.excepthook = thread_error
    try:
        arguments = _without_plugins(arguments)
        if not arguments or arguments[0] in ("-h", "--help"):
            print(overview(COMMANDS))
            return 0
        if arguments[0] == "--version":
            from facessl.core import environment

            print(environment.version("facessl"))
            return 0
        if arguments[0] not in COMMANDS:
            raise UnknownName("command", arguments[0], COMMANDS)
        return call(arguments[0], COMMANDS[arguments[0]], arguments[1:])
    except FaceSSLError as error:
        print(f"facessl: {printable_lines(str(error))}", file=sys.stderr)
        return USER_ERROR
    except KeyboardInterrupt:
        print("facessl: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return 0
    except OSError as error:  # unforeseen, such as no folder for temporary files
        print(f"facessl: the system refuses: {' '.join(str(error).split())}", file=sys.stderr)
        return USER_ERROR


def _without_plugins(arguments: list[str]) -> list[str]:
    """Import the files of `--plugin FILE.py`; return the arguments after them.

    They precede the command, where no `*` of the shell can put a file's name, and no recipe or run can name them.
    """
    while arguments and arguments[0].partition("=")[0] == "--plugin":
        file = arguments[0].partition("=")[2] or "".join(arguments[1:2])
        plugins.add(file)
        arguments = arguments[1 if "=" in arguments[0] else 2 :]
    if any(word.partition("=")[0] == "--plugin" for word in arguments):
        raise PluginError("--plugin stands before the command: facessl --plugin FILE.py COMMAND ...")
    return arguments


def cmd_report(runs: list[Path], out: Path | None = None, compare: Literal["paper"] | None = None) -> int:
    """Rewrite the report of a run, or compare several; the last line is JSON.

    Args:
        runs: run folders; with --compare also files that `facessl probe --out` wrote.
        out: page to write; report.html (one run) or comparison.html (several) in the first run folder by default.
        compare: `paper` also prints a table of the runs' scores beside the published ones of the same data set and
            protocol, with the difference; without it no table is printed.
    """
    from facessl.core import files
    from facessl.report import paper
    from facessl.report.write import report

    files.check_output(out)
    result = report(runs, out=out, compare=compare)
    page = Path(result.get("page") or out or Path(runs[0]) / "report.html")
    if page.is_file():
        print(f"report: {page}", file=sys.stderr)
    if compare is not None:
        print(paper.table(result["paper"]))
    print(json.dumps(result))
    return 0


def cmd_list(argv: list[str]) -> int:
    """What can be named on the command line: methods, sources, tasks, protocols, recipes."""
    kinds = ("methods", "sources", "tasks", "protocols", "recipes")
    parser = Parser(prog="facessl list", description=summary(cmd_list))
    parser.add_argument("what", nargs="?", metavar="WHAT", help=f"one of {', '.join(kinds)}")
    parser.add_argument("filter", nargs="?", metavar="FILTER", help="print only the names that contain this text")
    parser.add_argument("--show", metavar="NAME", help="print the YAML of one recipe, e.g. fra/vggface2-r50")
    options = parsed_words(parser, argv, "list")
    what = options["what"]
    if options["show"] is not None:
        from facessl.config.recipes import recipe_text

        print(recipe_text(options["show"]), end="")
    elif what is None:
        print("facessl list WHAT [FILTER] lists one of: " + ", ".join(kinds))
    elif what not in kinds:
        raise UnknownName("kind of name", what, kinds)
    else:
        for name, text in listed(what, options["filter"] or ""):
            print(f"{name:{40 if what == 'recipes' else 14}} {text}")
    return 0


def cmd_check(as_json: bool = False) -> int:
    """Versions, device, bf16 support, optional parts.

    Args:
        as_json: print JSON.
    """
    from facessl.core import environment

    facts = environment.check()
    print(json.dumps(facts) if as_json else yaml.safe_dump(facts, sort_keys=False, allow_unicode=True).rstrip())
    return 0


#: Name of a command -> its function, in the order of `facessl --help`.
COMMANDS: dict[str, Callable[..., int]] = {
    "pretrain": cmd_pretrain,
    "finetune": cmd_finetune,
    "embed": cmd_embed,
    "search": cmd_search,
    "group": cmd_group,
    "map": cmd_map,
    "app": cmd_app,
    "regions": cmd_regions,
    "probe": cmd_probe,
    "predict": cmd_predict,
    "export": cmd_export,
    "convert": cmd_convert,
    "plan": cmd_plan,
    "report": cmd_report,
    "list": cmd_list,
    "check": cmd_check,
    "crop": cmd_crop,
    "pack": cmd_pack,
}


if __name__ == "__main__":
    sys.exit(main())
