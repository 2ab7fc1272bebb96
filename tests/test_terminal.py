"""What the command shows: help, JSON, completion, colours, progress."""

from __future__ import annotations

import json
import os
import pty
import re
import shlex
import shutil
import subprocess
import sys

import pytest
from commands import BINARIZE, environment, spawn

from hashsolve import cli
from hashsolve.options import EFFORT, METHOD
from hashsolve.terminal import TimeLeft, _clock

COMMANDS = sorted(cli.cli.commands)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example_that_is_right(command):
    """Every line of an example is an invocation with options that there are."""
    told = cli.cli.commands[command].help
    lines = re.findall(rf"^ *hashsolve {command}.*(?:(?<=\\)\n.*)*", told, flags=re.M)
    assert lines
    for line in lines:
        words = shlex.split(line.replace("\\\n", " ").split(">")[0])
        cli.cli.commands[command].make_context(command, words[2:])


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_json(command):
    names = [option for p in cli.cli.commands[command].params for option in p.opts]
    assert "--json" in names


def test_json_of_completion(run):
    found = json.loads(run("completion", "bash", "--json")[1])
    assert found == {"shell": "bash", "script": run("completion", "bash")[1].removesuffix("\n")}


def test_json_of_report(run, tmp_path):
    pytest.importorskip("jinja2")
    pytest.importorskip("matplotlib")
    assert run(*BINARIZE, "--run-dir", tmp_path / "r", "--method", "sign")[0] == 0
    code, out, error = run("report", tmp_path / "r", "--against", "none", "--json")
    found = json.loads(out)
    assert (code, error) == (0, "") and found["runs"] == [str(tmp_path / "r")]
    assert found["bytes"] == os.path.getsize(found["output"]) > 0


def complete(shell: str, *words: str) -> list[str]:
    """What a shell is told to offer for the last of these words."""
    asked = {"COMP_WORDS": shlex.join(("hashsolve", *words)), "COMP_CWORD": str(len(words))}
    done = subprocess.run(
        [sys.executable, "-c", "from hashsolve.cli import main; main()"],
        env=environment(_HASHSOLVE_COMPLETE=f"{shell}_complete", **asked),
        capture_output=True,
        text=True,
        check=True,
    )
    return re.findall(r"^(?:plain|file)[,\n](\S+)", done.stdout, flags=re.M)


def test_completion():
    assert complete("bash", "so") == ["solve"]
    assert complete("bash", "solve", "--method", "") == list(METHOD.names)
    assert complete("zsh", "binarize", "--effort", "t") == ["thorough"]
    assert "--save-problem" in complete("bash", "solve", "--s")
    assert set(EFFORT.names) == set(complete("bash", "solve", "p.h5", "--effort", ""))


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_completion_script_is_what_its_shell_reads(run, shell, tmp_path):
    code, out, error = run("completion", shell)
    assert (code, error) == (0, "") and f"_HASHSOLVE_COMPLETE={shell}_complete" in out
    program = shutil.which(shell)
    if program is None:
        pytest.skip(f"{shell} is not here")
    (tmp_path / "script").write_text(out)
    checked = subprocess.run([program, "-n", tmp_path / "script"], capture_output=True, text=True)
    assert (checked.returncode, checked.stderr) == (0, "")


def test_bash_completes_by_the_script(run, tmp_path):
    """In a shell that has read the script, with the command on its path."""
    if shutil.which("bash") is None:
        pytest.skip("bash is not here")
    command = tmp_path / "hashsolve"
    command.write_text(f"#!{sys.executable}\nfrom hashsolve.cli import main\nmain()\n")
    command.chmod(0o755)
    (tmp_path / "script").write_text(run("completion", "bash")[1])
    asked = f"""
    . {tmp_path}/script
    COMP_WORDS=(hashsolve solve --method ta); COMP_CWORD=3
    _hashsolve_completion hashsolve
    echo "${{COMPREPLY[@]}}"
    """
    path = f"{tmp_path}:{os.environ['PATH']}"
    found = subprocess.run(
        ["bash", "-c", asked], env=environment(PATH=path), capture_output=True, text=True
    )
    assert found.stdout.strip() == "tabu", found.stderr


# progress and colours


def on_a_terminal(folder, *arguments: str, **more: str) -> str:
    """What a command writes to an error stream that is a terminal."""
    ours, its = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "hashsolve.cli", *arguments],
        cwd=folder,
        env=environment(**{"TERM": "xterm-256color", "COLUMNS": "160", **more}),
        stdout=subprocess.DEVNULL,
        stderr=its,
    )
    os.close(its)
    seen = b""
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:  # Linux says so that the other end is closed
            break
        if not part:
            break
        seen += part
    os.close(ours)
    assert process.wait() == 0
    return seen.decode()


COLOUR = re.compile("\x1b\\[(?:[\\d;]*;)?[34]\\d[;\\dm]")


def test_progress_and_colours_are_for_terminals(here, tmp_path):
    rows = (*BINARIZE, "--method", "sign", "--run-dir")
    seen = on_a_terminal(here, *rows, str(tmp_path / "a"))
    assert COLOUR.search(seen) and "stem.conv (1/5)" in seen
    assert re.search(r"left: layer \d+:\d\d, all \d+:\d\d", seen)
    seen = on_a_terminal(here, *rows, str(tmp_path / "b"), NO_COLOR="1")
    assert "stem.conv (1/5)" in seen and not COLOUR.search(seen)
    process = spawn(here, *rows, str(tmp_path / "c"))
    out, error = process.communicate()
    assert (process.returncode, error) == (0, "") and "\x1b" not in out


def test_time_left():
    """Layers of 10 seconds each, of which an earlier run has done one."""
    at = [0.0]
    left = TimeLeft(lambda: at[0])
    assert left(0, 4, "resumed") is None
    assert left(1, 4, "extracting activations") is None
    at[0] = 10.0
    assert left(2, 4, "extracting activations") == (10.0, 20.0)
    at[0] = 16.0
    assert left(2, 4, "solving") == (4.0, 14.0)
    at[0] = 50.0  # it takes longer than the first did
    assert left(2, 4, "solving") == (0.0, 10.0)
    assert left(3, 4, "solving") == (25.0, 25.0)  # the mean of 10 and 40 seconds
    assert (_clock(65.2), _clock(3_725)) == ("1:05", "1:02:05")


def test_unknown_options_are_suggested(refused):
    assert "--against" in refused("report", "run", "--againts", "dcc")
    assert "did you mean 'beam'?" in refused("report", "run", "--against", "baem")


def test_a_table_without_a_terminal_has_no_colours(capsys):
    from hashsolve.terminal import print_table

    print_table(("a", "b"), [("head", ""), ("x", "1")])
    assert "\x1b" not in capsys.readouterr().out
