"""`durable-streams s2 basins ...` and `durable-streams s2 streams ...`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, is_dataclass
from datetime import datetime
from typing import Any, TypeVar, cast

import click

from ..s2 import (
    S2,
    BasinConfig,
    BasinInfo,
    BasinReconfiguration,
    Basins,
    Listing,
    StreamConfig,
    StreamInfo,
    StreamReconfiguration,
    Streams,
    Timestamping,
    TimestampingReconfiguration,
)
from . import output
from .help import Command, Group
from .s2_target import Service, run, split, with_service

F = TypeVar("F", bound=Callable[..., Any])

_STREAM_FIELDS = ("storage_class", "retention", "timestamping", "uncapped", "delete_on_empty")
#: What the fields are called that can be cleared.
_CLEARABLE = [name.replace("_", "-") for name in _STREAM_FIELDS]


class _Retention(click.ParamType[Any]):
    name = "retention"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "infinite" or isinstance(value, int):
            return value
        unit = {"s": 1, "m": 60, "h": 3600, "d": 86400}.get(value[-1:], 0)
        digits = value[:-1] if unit else value
        if not digits.isascii() or not digits.isdigit() or not int(digits):
            self.fail(f"{value!r} is no time: give seconds, or 30m, 12h, 7d, or infinite", param, ctx)
        return int(digits) * (unit or 1)


def _stream_options(command: F) -> F:
    """The options of a stream's configuration."""
    for option in reversed(
        [
            click.option("--storage-class", metavar="CLASS", help='Such as "express" or "standard".'),
            click.option("--retention", metavar="TIME", type=_Retention(), help="Keep records so long: 7d, infinite."),
            click.option(
                "--timestamping",
                type=click.Choice(["client-prefer", "client-require", "arrival"]),
                help="Whose time a record gets.",
            ),
            click.option("--uncapped/--capped", default=None, help="Keep, or lower, a client's time in the future."),
            click.option(
                "--delete-on-empty",
                metavar="SECONDS",
                type=click.IntRange(min=0),
                help="Delete the stream when it has been empty so long; 0 is never.",
            ),
        ]
    ):
        command = option(command)
    return command


def _clear_option(command: F) -> F:
    return click.option(
        "--clear",
        multiple=True,
        type=click.Choice(_CLEARABLE),
        help="Set this back to what is inherited. May be repeated.",
    )(command)


def _basin_options(command: F) -> F:
    """The options of a basin's own configuration."""
    for option in reversed(
        [
            click.option(
                "--create-on-append/--no-create-on-append", default=None, help="Whether an append creates its stream."
            ),
            click.option(
                "--create-on-read/--no-create-on-read", default=None, help="Whether a read creates its stream."
            ),
            click.option(
                "--cipher",
                type=click.Choice(["aegis-256", "aes-256-gcm"]),
                help="Encrypt new streams with a key that the client gives.",
            ),
        ]
    ):
        command = option(command)
    return command


_PREFIX = click.option("--prefix", metavar="TEXT", default="", help="Only names that begin like this.")
_DELETED = click.option("--deleted", is_flag=True, help="Also those that are being deleted.")
_ENSURE = click.option(
    "--ensure", is_flag=True, help="If it exists, give it this configuration; what is left out is reset."
)
_IF_EXISTS = click.option("--if-exists", is_flag=True, help="It is as good if there is none.")


# -- Basins ------------------------------------------------------------------------------------------------


@click.command("list", cls=Command, short_help="List basins.", examples=["durable-streams s2 basins list --prefix my-"])
@with_service
@_PREFIX
@_DELETED
def list_basins(service: Service, /, *, prefix: str, deleted: bool) -> None:
    """Print the account's basins, one JSON object per line."""
    _print_all(service, lambda client: client.basins.list_all(prefix=prefix, include_deleted=deleted))


@click.command(
    "create",
    cls=Command,
    short_help="Create a basin.",
    examples=["durable-streams s2 basins create my-basin --create-on-append --retention 7d"],
)
@with_service
@click.argument("basin", metavar="BASIN")
@click.option("--location", metavar="NAME", help="Where to keep it, such as aws:us-east-1.")
@_ENSURE
@_basin_options
@_stream_options
def create_basin(service: Service, /, *, basin: str, location: str | None, ensure: bool, **options: Any) -> None:
    """Create BASIN, with a configuration for it and for the streams that it will have."""

    async def work(client: S2) -> None:
        make = client.basins.ensure if ensure else client.basins.create
        _print_info(await make(basin, config=_basin_config(options), location=location))

    run(service, work)


@click.command(
    "config",
    cls=Command,
    short_help="Show or change a basin's configuration.",
    examples=[
        "durable-streams s2 basins config my-basin",
        "durable-streams s2 basins config my-basin --create-on-append --clear retention",
    ],
)
@with_service
@click.argument("basin", metavar="BASIN")
@_basin_options
@click.option("--clear-cipher", is_flag=True, help="New streams are not encrypted any more.")
@_stream_options
@_clear_option
def config_basin(
    service: Service, /, *, basin: str, clear: tuple[str, ...], clear_cipher: bool, **options: Any
) -> None:
    """Show BASIN's configuration, after changing what the options say. The rest stays."""
    if clear_cipher and options["cipher"] is not None:
        raise click.UsageError("--cipher and --clear-cipher exclude each other.")
    fields: dict[str, Any] = _given(create_stream_on_append=options["create_on_append"])
    fields |= _given(create_stream_on_read=options["create_on_read"], stream_cipher=options["cipher"])
    if clear_cipher:
        fields["stream_cipher"] = None
    streams = _stream_changes(options, clear)
    if streams != StreamReconfiguration():
        fields["default_stream_config"] = streams
    changes = BasinReconfiguration(**fields)
    run(service, lambda client: _configure(client.basins, basin, changes))


@click.command(
    "delete", cls=Command, short_help="Delete a basin.", examples=["durable-streams s2 basins delete my-basin"]
)
@with_service
@click.argument("basin", metavar="BASIN")
@_IF_EXISTS
def delete_basin(service: Service, /, *, basin: str, if_exists: bool) -> None:
    """Ask for the deletion of BASIN and all its streams. It happens some time later. Prints nothing."""
    run(service, lambda client: client.basins.delete(basin, ignore_not_found=if_exists))


@click.group(
    cls=Group,
    short_help="Basins: list, create, config, delete.",
    examples=["durable-streams s2 basins create my-basin", "durable-streams s2 basins list"],
    commands=[list_basins, create_basin, config_basin, delete_basin],
)
def basins() -> None:
    """Basins hold streams. Their names are unique in the whole service."""


# -- Streams -----------------------------------------------------------------------------------------------


@click.command(
    "list",
    cls=Command,
    short_help="List streams.",
    examples=["durable-streams s2 streams list my-basin --prefix logs/"],
)
@with_service
@click.argument("basin", metavar="BASIN")
@_PREFIX
@_DELETED
def list_streams(service: Service, /, *, basin: str, prefix: str, deleted: bool) -> None:
    """Print the streams of BASIN, one JSON object per line."""
    _print_all(service, lambda client: client.basin(basin).streams.list_all(prefix=prefix, include_deleted=deleted))


@click.command(
    "create",
    cls=Command,
    short_help="Create a stream.",
    examples=["durable-streams s2 streams create my-basin/logs/web --retention 30d"],
)
@with_service
@click.argument("target", metavar="BASIN/STREAM")
@_ENSURE
@_stream_options
def create_stream(service: Service, /, *, target: str, ensure: bool, **options: Any) -> None:
    """Create a stream. What is left out it gets from its basin."""
    basin, stream = split(target)

    async def work(client: S2) -> None:
        streams = client.basin(basin).streams
        make = streams.ensure if ensure else streams.create
        _print_info(await make(stream, config=_stream_config(options)))

    run(service, work)


@click.command(
    "config",
    cls=Command,
    short_help="Show or change a stream's configuration.",
    examples=[
        "durable-streams s2 streams config my-basin/logs/web",
        "durable-streams s2 streams config my-basin/logs/web --retention infinite --clear timestamping",
    ],
)
@with_service
@click.argument("target", metavar="BASIN/STREAM")
@_stream_options
@_clear_option
def config_stream(service: Service, /, *, target: str, clear: tuple[str, ...], **options: Any) -> None:
    """Show a stream's configuration, after changing what the options say. The rest stays."""
    basin, stream = split(target)
    changes = _stream_changes(options, clear)
    run(service, lambda client: _configure(client.basin(basin).streams, stream, changes))


@click.command(
    "delete",
    cls=Command,
    short_help="Delete a stream.",
    examples=["durable-streams s2 streams delete my-basin/logs/web"],
)
@with_service
@click.argument("target", metavar="BASIN/STREAM")
@_IF_EXISTS
def delete_stream(service: Service, /, *, target: str, if_exists: bool) -> None:
    """Delete a stream and its records. Prints nothing."""
    basin, stream = split(target)
    run(service, lambda client: client.basin(basin).streams.delete(stream, ignore_not_found=if_exists))


@click.group(
    cls=Group,
    short_help="Streams: list, create, config, delete.",
    examples=["durable-streams s2 streams create my-basin/chat", "durable-streams s2 streams list my-basin"],
    commands=[list_streams, create_stream, config_stream, delete_stream],
)
def streams() -> None:
    """Streams hold records. A stream is named BASIN/STREAM, also written s2://BASIN/STREAM."""


# -- Options and results -----------------------------------------------------------------------------------


def _given(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _stream_config(options: dict[str, Any]) -> StreamConfig | None:
    """The configuration that the options describe; None if they say nothing."""
    timestamping = _given(mode=options["timestamping"], uncapped=options["uncapped"])
    fields = _given(
        storage_class=options["storage_class"],
        retention_policy=options["retention"],
        delete_on_empty=options["delete_on_empty"],
    )
    if timestamping:
        fields["timestamping"] = Timestamping(**timestamping)
    return StreamConfig(**fields) if fields else None


def _basin_config(options: dict[str, Any]) -> BasinConfig | None:
    fields = _given(
        default_stream_config=_stream_config(options),
        stream_cipher=options["cipher"],
        create_stream_on_append=options["create_on_append"],
        create_stream_on_read=options["create_on_read"],
    )
    return BasinConfig(**fields) if fields else None


def _stream_changes(options: dict[str, Any], clear: tuple[str, ...]) -> StreamReconfiguration:
    """What the options change: values set, `--clear` clears, the rest stays."""
    for name in _STREAM_FIELDS:
        if options[name] is not None and name.replace("_", "-") in clear:
            raise click.UsageError(
                f"--{name.replace('_', '-')} and --clear {name.replace('_', '-')} exclude each other."
            )
    fields = _given(
        storage_class=options["storage_class"],
        retention_policy=options["retention"],
        delete_on_empty=options["delete_on_empty"],
    )
    timestamping = _given(mode=options["timestamping"], uncapped=options["uncapped"])
    for name in clear:
        if name == "timestamping":
            timestamping["mode"] = None
        elif name == "uncapped":
            timestamping["uncapped"] = None
        else:
            fields[{"retention": "retention_policy"}.get(name, name.replace("-", "_"))] = None
    if timestamping:
        fields["timestamping"] = TimestampingReconfiguration(**timestamping)
    return StreamReconfiguration(**fields)


async def _configure(things: Basins | Streams, name: str, changes: Any) -> None:
    """Change what is to be changed of a configuration, and print all of it."""
    if changes == type(changes)():
        config: BasinConfig | StreamConfig = await things.get_config(name)
    else:
        config = await things.reconfigure(name, changes)
    output.write(output.json_lines([_shape(config)]))


def _print_all(service: Service, listing: Callable[[S2], Listing[BasinInfo] | Listing[StreamInfo]]) -> None:
    """Print a listing while it comes."""

    async def work(client: S2) -> None:
        async for info in listing(client):
            output.write(output.json_lines([_shape(info)]))

    run(service, work, prints=True)


def _print_info(info: BasinInfo | StreamInfo) -> None:
    output.facts({name: value for name, value in _shape(info).items() if name != "state"})


def _shape(value: Any) -> dict[str, Any]:
    """A value of the library as JSON has it."""
    assert is_dataclass(value)
    return cast("dict[str, Any]", _plain(asdict(cast("Any", value))))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items() if each is not None}
    return value.isoformat() if isinstance(value, datetime) else value
