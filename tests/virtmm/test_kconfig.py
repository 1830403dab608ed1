# SPDX-License-Identifier: GPL-2.0-only
"""The config stage: symbols as the series has them, and nothing overridden in silence."""

import os
import pickle
import shutil
import tempfile
from pathlib import Path

import pytest
from virtmm.arch import names
from virtmm.arch.params import ArchError

from virtmm import topdir
from virtmm.kconfig import (
    ConfigError,
    assign,
    config_text,
    defconfigs,
    fragment_names,
    load,
    open_kconfig,
    parse_config,
    resolve,
)

ORDERS = ("LARGE_ANON_FOLIO_NOTHP_ORDER_MAX", "LARGE_ANON_FOLIO_THP_ORDER_MAX")
KERNELS = [(arch, name) for arch in names() for name in [*defconfigs(arch), "defconfig"]]


def orders(config, prefix=""):
    return tuple(config.get(prefix + name, None) for name in ORDERS)


def error(*args, **kwargs):
    """Return the message of the ConfigError that resolve() must raise."""
    with pytest.raises(ConfigError) as e:
        resolve(*args, **kwargs)
    return str(e.value)


# The six symbols of the v1 series


@pytest.mark.parametrize(
    ("fragments", "shift", "nothp", "thp"),
    [([], 12, 4, 4), (["16k"], 14, 2, 7), (["64k"], 16, 0, 5)],
)
def test_orders_by_page_size(fragments, shift, nothp, thp):
    off = resolve("arm64", "baseline_4k", fragments)
    assert off["PAGE_SHIFT"] == shift
    assert off["ARCH_SUPPORTS_LARGE_ANON_FOLIO"] is True
    assert off["LARGE_ANON_FOLIO"] is False
    assert orders(off, "ARCH_") == (nothp, thp)
    assert orders(off) == (0, 0)
    on = resolve("arm64", "anonfolio_basic", fragments)
    assert on["LARGE_ANON_FOLIO"] is True
    assert orders(on) == (nothp, thp)


@pytest.mark.parametrize("arch", [arch for arch in names() if arch != "arm64"])
def test_only_arm64_has_opted_in(arch):
    config = resolve(arch)
    assert config["ARCH_SUPPORTS_LARGE_ANON_FOLIO"] is False
    assert orders(config) == (0, 0)
    assert orders(config, "ARCH_") == (None, None)
    message = error(arch, sets=["LARGE_ANON_FOLIO=y"])
    assert message == (
        "--set: wanted LARGE_ANON_FOLIO=y, got n: "
        "unmet dependency ARCH_SUPPORTS_LARGE_ANON_FOLIO (is n)"
    )


def test_promptless_symbols_cannot_be_set():
    for symbol in (*ORDERS, *(f"ARCH_{name}" for name in ORDERS)):
        assert "it has no prompt" in error("arm64", "anonfolio_basic", sets=[f"{symbol}=1"])
    message = error("arm64", sets=["ARCH_SUPPORTS_LARGE_ANON_FOLIO=n"])
    assert "it has no prompt" in message


def test_large_anon_folio_defaults_to_off_and_needs_no_thp():
    config = resolve(
        "arm64",
        sets=["TRANSPARENT_HUGEPAGE=n", "TRANSPARENT_HUGEPAGE_MADVISE=n", "LARGE_ANON_FOLIO=y"],
    )
    assert orders(config) == (4, 4)
    assert resolve("arm64")["LARGE_ANON_FOLIO"] is False


def test_both_maxima_can_be_forced_to_zero():
    sets = ["EXPERT=y", "LARGE_ANON_FOLIO_FORCE_ORDER_0=y"]
    config = resolve("arm64", "anonfolio_basic", sets=sets)
    assert config["LARGE_ANON_FOLIO"] is True
    assert orders(config) == (0, 0)
    assert orders(config, "ARCH_") == (4, 4)
    assert "EXPERT (is n)" in error("arm64", "anonfolio_basic", sets=sets[1:])
    assert "LARGE_ANON_FOLIO (is n)" in error("arm64", "baseline_4k", sets=sets)


def test_arch_outside_the_tree_that_has_not_opted_in(tmp_path):
    folder = tmp_path / "arm64"
    shutil.copytree(topdir() / "arch" / "arm64", folder)
    kconfig = folder / "Kconfig"
    text = kconfig.read_text()
    kconfig.write_text(text.replace("\tselect ARCH_SUPPORTS_LARGE_ANON_FOLIO\n", ""))
    config = resolve("arm64", "baseline_4k", arch_dir=folder)
    assert config["ARCH_SUPPORTS_LARGE_ANON_FOLIO"] is False
    assert resolve("arm64", "baseline_4k")["ARCH_SUPPORTS_LARGE_ANON_FOLIO"] is True
    with pytest.raises(ConfigError, match="unmet dependency ARCH_SUPPORTS_LARGE_ANON_FOLIO"):
        resolve("arm64", "anonfolio_basic", arch_dir=folder)


# Our own symbols


def test_anon_policy_follows_large_anon_folio():
    base, v1 = resolve("arm64", "baseline_4k"), resolve("arm64", "anonfolio_basic")
    assert (base["ANON_POLICY_BASE"], base["ANON_POLICY_V1"]) == (True, False)
    assert (v1["ANON_POLICY_BASE"], v1["ANON_POLICY_V1"]) == (False, True)
    message = error("arm64", "anonfolio_basic", sets=["ANON_POLICY_BASE=y"])
    assert "unmet dependency !LARGE_ANON_FOLIO (LARGE_ANON_FOLIO=y)" in message


def test_defaults_of_the_machine():
    config = resolve("arm64")
    assert config["MEMORY_MB"] == 16384
    assert config["COST_RELEASE"] == "6.12"
    assert config["C_RANGES"] is True
    assert config["ANON_ZAP_BATCH"] is True
    assert config["WERROR"] is True
    for name in ("PHYS_BACKING", "DEBUG_VM", "FAULT_INJECTION", "EXPERT"):
        assert config[name] is False


@pytest.mark.parametrize("fragment, order", [([], 10), (["16k"], 11), (["64k"], 13)])
def test_largest_block_of_free_memory(fragment, order):
    assert resolve("arm64", fragments=fragment)["ARCH_FORCE_MAX_ORDER"] == order
    assert resolve("x86")["ARCH_FORCE_MAX_ORDER"] == 10
    assert "EXPERT" in error("arm64", sets=["ARCH_FORCE_MAX_ORDER=9"])
    assert (
        resolve("arm64", sets=["EXPERT=y", "ARCH_FORCE_MAX_ORDER=9"])["ARCH_FORCE_MAX_ORDER"] == 9
    )
    assert "no prompt" in error("x86", sets=["EXPERT=y", "ARCH_FORCE_MAX_ORDER=9"])


def test_every_prompt_has_help():
    for arch in names():
        kconf = open_kconfig(arch)
        for symbol in kconf.unique_defined_syms:
            for node in symbol.nodes:
                assert not node.prompt or node.help, f"{node.filename}:{node.linenr}"


# Named kernels


def test_named_kernels_are_in_table_order():
    assert defconfigs("arm64") == [
        "baseline_4k",
        "anonfolio_basic",
        "anonfolio",
        "contpte",
        "exefolio",
        "baseline_16k",
        "baseline_64k",
        "linux-6.12",
        "linux-7.3",
    ]
    assert defconfigs("x86") == ["baseline_4k", "linux-6.12", "linux-6.18", "linux-7.3"]
    contpte = ["contpte-basic", "contpte-batch", "contpte-fold"]
    ladders = ["v2", "v2-simple", "v3", "v5"]
    assert fragment_names("arm64") == ["16k", "64k", *contpte, *ladders, "debug"]
    assert fragment_names("x86") == ["debug"]


@pytest.mark.parametrize(("arch", "name"), KERNELS)
def test_named_kernel_has_thp_by_madvise_and_is_in_minimal_form(arch, name):
    config = resolve(arch, name)
    have = config["HAVE_ARCH_TRANSPARENT_HUGEPAGE"]
    assert have == (arch not in ("alpha", "ia64", "m68k"))
    assert config["TRANSPARENT_HUGEPAGE"] is have
    assert config["TRANSPARENT_HUGEPAGE_MADVISE"] is have
    file = "defconfig" if name == "defconfig" else f"{name}_defconfig"
    path = topdir() / "arch" / arch / "configs" / file
    kconf = open_kconfig(arch)
    assign(kconf, [parse_config(path)])
    assert path.read_text() == config_text(kconf, minimal=True)


@pytest.mark.parametrize(("arch", "name"), KERNELS)
def test_config_file_round_trip(arch, name, tmp_path):
    config = resolve(arch, name, ["debug"])
    (tmp_path / ".config").write_text(config.text)
    assert load(tmp_path / ".config", arch) == config


def test_debug_fragment():
    config = resolve("x86", fragments=["debug"])
    assert all(config[name] for name in ("DEBUG_VM", "PHYS_BACKING", "FAULT_INJECTION"))


def test_names_may_be_paths(tmp_path, monkeypatch):
    (tmp_path / "mine.config").write_text("CONFIG_MEMORY_MB=64\n")
    assert resolve("arm64", fragments=[tmp_path / "mine.config"])["MEMORY_MB"] == 64
    assert resolve("arm64", fragments=[str(tmp_path / "mine.config")])["MEMORY_MB"] == 64
    assert resolve("arm64", tmp_path / "mine.config")["TRANSPARENT_HUGEPAGE"] is False
    monkeypatch.chdir(tmp_path)
    assert resolve("arm64", fragments=["mine.config"])["MEMORY_MB"] == 64
    assert resolve("arm64", "baseline_16k_defconfig", ["64k.config"])["PAGE_SHIFT"] == 16


def test_unknown_names_list_what_exists():
    assert error("arm64", "nope") == (
        "arm64 has no defconfig 'nope'; choose one of: "
        "baseline_4k, anonfolio_basic, anonfolio, contpte, exefolio, baseline_16k, baseline_64k, "
        "linux-6.12, linux-7.3, defconfig"
    )
    assert error("x86", fragments=["64k"]) == "x86 has no fragment '64k'; choose one of: debug"


# Layers


def test_later_layers_win():
    assert resolve("arm64", "baseline_16k", ["64k"])["PAGE_SHIFT"] == 16
    assert resolve("arm64", "baseline_16k", ["64k"], ["ARM64_4K_PAGES=y"])["PAGE_SHIFT"] == 12
    config = resolve("arm64", sets=["MEMORY_MB=64", "CONFIG_MEMORY_MB=128"])
    assert config["MEMORY_MB"] == 128


def test_set_takes_strings_with_and_without_quotes():
    assert resolve("arm64", sets=["COST_RELEASE=7.3"])["COST_RELEASE"] == "7.3"
    assert resolve("arm64", sets=['COST_RELEASE="7.3"'])["COST_RELEASE"] == "7.3"


def test_strings_in_files_keep_quotes_and_backslashes(tmp_path):
    odd = resolve("arm64", sets=['COST_RELEASE="a\\"b\\\\c"'])
    assert odd["COST_RELEASE"] == 'a"b\\c'
    (tmp_path / ".config").write_text(odd.text)
    assert load(tmp_path / ".config", "arm64") == odd


def test_value_that_a_later_layer_makes_impossible():
    message = error("arm64", "baseline_4k", sets=["TRANSPARENT_HUGEPAGE=n"])
    assert message == (
        "arch/arm64/configs/baseline_4k_defconfig:2: wanted TRANSPARENT_HUGEPAGE_MADVISE=y, got n: "
        "unmet dependency TRANSPARENT_HUGEPAGE (is n); "
        "add TRANSPARENT_HUGEPAGE_MADVISE=n if that is meant"
    )


# What is refused


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("NOPE=y", "--set: unknown symbol NOPE"),
        ("DEBUG_VMM=y", "--set: unknown symbol DEBUG_VMM; did you mean DEBUG_VM?"),
        ("DEBUG_VM", "--set DEBUG_VM: malformed; write SYMBOL=value, for example DEBUG_VM=y"),
        ("=y", "--set =y: malformed; write SYMBOL=value, for example DEBUG_VM=y"),
        ("DEBUG_VM=1", "--set: DEBUG_VM=1: y or n expected"),
        ("DEBUG_VM=m", "--set: DEBUG_VM=m: y or n expected"),
        ("DEBUG_VM=", "--set: DEBUG_VM=: y or n expected"),
        ("MEMORY_MB=1G", "--set: MEMORY_MB=1G: a whole number expected"),
        ("MEMORY_MB=15", "15 is not in its range, 16 to 16777216"),
        ("MEMORY_MB=16777217", "16777217 is not in its range, 16 to 16777216"),
        ("ARM64_4K_PAGES=n", "one of its choice must be y, and that is ARM64_4K_PAGES"),
        ("ARM64=n", "it has no prompt"),
    ],
)
def test_refused_settings(setting, message):
    text = error("arm64", sets=[setting])
    assert message in text
    assert "\n" not in text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("CONFIG_DEBUG_VM=y\nDEBUG_VM=y\n", ":2: malformed line 'DEBUG_VM=y'"),
        ("# a remark\n\n  CONFIG_NOPE=y", ":3: unknown symbol NOPE"),
        ("CONFIG_COST_RELEASE=6.12\n", ":1: COST_RELEASE=6.12: a string in double quotes expected"),
        ("CONFIG_DEBUG_VM=y\n# CONFIG_DEBUG_VM is not set\n", ":2: DEBUG_VM was already set by "),
        ("CONFIG_ARM64_4K_PAGES=y\nCONFIG_ARM64_16K_PAGES=y\n", "already chose ARM64_4K_PAGES"),
        ("CONFIG_MEMORY_MB=1\n", ":1: wanted MEMORY_MB=1, got 16384"),
    ],
)
def test_refused_files(content, message, tmp_path):
    path = tmp_path / "x.config"
    path.write_text(content)
    for text in (error("arm64", path), error("arm64", fragments=[path])):
        assert message in text
        assert str(path) in text
        assert "\n" not in text
    with pytest.raises(ConfigError, match=r"x\.config:"):
        load(path, "arm64")


def test_a_configuration_of_another_architecture_is_one_line(tmp_path):
    path = tmp_path / ".config"
    path.write_text(resolve("riscv").text)
    with pytest.raises(ConfigError) as e:
        load(path, "arm64")
    wanted = f"{path}:4: RISCV is riscv, not arm64; say --arch riscv (make: ARCH=riscv)"
    assert str(e.value) == error("arm64", path) == wanted
    assert load(path, "riscv") == resolve("riscv")


def test_many_malformed_lines_are_one_line(tmp_path):
    (tmp_path / "x").write_text("a\nb\nc\n")
    text = error("arm64", tmp_path / "x")
    assert text.endswith(
        "x:1: malformed line 'a'; write CONFIG_SYMBOL=value (and 2 more such lines)"
    )


def test_every_wrong_value_is_named(tmp_path):
    (tmp_path / "x").write_text("CONFIG_NOPE=y\nCONFIG_MEMORY_MB=1\n")
    assert len(error("arm64", tmp_path / "x").splitlines()) == 2


def test_unreadable_files(tmp_path):
    assert error("arm64", tmp_path / "no").endswith("no: No such file or directory")
    (tmp_path / "binary").write_bytes(b"\x7fELF\xff")
    assert "not a text file" in error("arm64", tmp_path / "binary")


NUMBERS = "config PAGE_SHIFT\n\tint\n\tdefault 12\nconfig ARCH_FORCE_MAX_ORDER\n\tdefault 10\n"


def test_selected_symbol_names_its_selector(tmp_path):
    folder = arch_with(
        tmp_path,
        'config A\n\tbool "A"\n\thelp\n\t  A.\nconfig ARM64\n\tdef_bool y\n\tselect A\n' + NUMBERS,
    )
    (tmp_path / "x").write_text("# CONFIG_A is not set\n")
    assert "wanted A=n, got y: selected by ARM64" in error("arm64", tmp_path / "x", arch_dir=folder)


def arch_with(tmp_path, kconfig):
    """Return a folder with arm64's description and the given Kconfig."""
    folder = tmp_path / "arm64"
    shutil.copytree(topdir() / "arch" / "arm64", folder)
    (folder / "Kconfig").write_text(kconfig)
    return folder


@pytest.mark.parametrize(
    ("kconfig", "message"),
    [
        ("config\n", "FOLDER/Kconfig:1: "),
        ("config A\n\tbool\n\tdefault 3\n\tint\n", "at FOLDER/Kconfig:1"),
        ('source "nowhere"\n', "nowhere"),
        (
            "config MEMORY_MB\n\tbool\n",
            "MEMORY_MB (defined at FOLDER/Kconfig:1, Kconfig:11) defined with",
        ),
        (
            'config A\n\tbool "A"\n\tdepends on NOSUCH && 3 != 0x1F\n',
            "FOLDER/Kconfig:1: NOSUCH is defined nowhere; define it, or do without",
        ),
        (
            'menu "M"\n\tprompt "x"\n',
            "FOLDER/Kconfig: not in the form of Kconfig (AttributeError: ",
        ),
        (
            "config A\n\tdef_bool y\n",
            "arm64.kconfig_symbol: ARM64 is not y; define it def_bool y in FOLDER/Kconfig",
        ),
    ],
)
def test_wrong_kconfig_of_an_arch_names_file_and_line(kconfig, message, tmp_path):
    (tmp_path / "x").write_text("")
    folder = arch_with(tmp_path, kconfig + NUMBERS)
    text = error("arm64", tmp_path / "x", arch_dir=folder)
    assert message.replace("FOLDER", str(folder)) in text
    assert "\n" not in text and "/../" not in text


def test_arch_without_kconfig(tmp_path):
    folder = arch_with(tmp_path, "")
    (folder / "Kconfig").unlink()
    (tmp_path / "x").write_text("")
    message = f"{folder}/Kconfig: no such file; write it, as Documentation/arch/porting.md says"
    assert error("arm64", tmp_path / "x", arch_dir=folder) == message


def test_a_kconfig_that_links_to_itself(tmp_path):
    folder = arch_with(tmp_path, "")
    (folder / "Kconfig").unlink()
    (folder / "Kconfig").symlink_to("Kconfig")
    (tmp_path / "x").write_text("")
    assert "Kconfig: no such file" in error("arm64", tmp_path / "x", arch_dir=folder)


def test_names_that_no_file_can_have():
    name = "a" * 301
    assert error("arm64", name) == f"arch/arm64/configs/{name}_defconfig: File name too long"
    message = f"arch/arm64/configs/{name}.config: File name too long"
    assert error("arm64", fragments=[name]) == message
    with pytest.raises(ArchError, match=f"^{name}: File name too long$"):
        resolve("arm64", arch_dir=Path(name))


# The result


def test_hash_follows_the_values_and_nothing_else(tmp_path):
    one, same = resolve("arm64", "baseline_4k"), resolve("arm64", "defconfig")
    assert one.hash == same.hash
    assert len(one.hash) == 64
    assert one.hash != resolve("arm64", sets=["MEMORY_MB=64"]).hash
    assert one.hash != resolve("x86", "baseline_4k").hash
    (tmp_path / ".config").write_text("# another remark\n" + one.text)
    assert load(tmp_path / ".config", "arm64").hash == one.hash


def test_result_is_read_only_and_can_be_sent_to_another_process():
    config = resolve("arm64")
    with pytest.raises(TypeError):
        config.values["DEBUG_VM"] = True
    with pytest.raises(KeyError):
        config["NOPE"]
    assert config.get("NOPE") is False
    assert config.get("NOPE", 7) == 7
    assert pickle.loads(pickle.dumps(config)) == config  # noqa: S301


def test_environment_and_folder_do_not_matter(tmp_path, monkeypatch):
    plain = resolve("arm64", "anonfolio_basic")
    settings = {
        "ARCH": "x86",
        "SRCARCH": "x86",
        "srctree": "/nowhere",
        "CONFIG_": "FOO_",
        "KCONFIG_CONFIG": "/nowhere",
        "KCONFIG_CONFIG_HEADER": "# header\n",
        "KCONFIG_STRICT": "y",
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    assert resolve("arm64", "anonfolio_basic") == plain
    assert {name: os.environ.get(name) for name in settings} == settings


def test_several_architectures_in_one_process():
    before = resolve("arm64")
    assert resolve("x86")["X86_64"] is True
    assert resolve("arm64") == before


def test_no_room_for_temporary_files(tmp_path, monkeypatch):
    """Kconfig writes .config to a file, which is read back."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    with pytest.raises(ConfigError) as e:
        config_text(open_kconfig("arm64"))
    assert str(e.value) == (
        f"{tmp_path}/gone: cannot write: No such file or directory; set TMPDIR to a folder with room"
    )
