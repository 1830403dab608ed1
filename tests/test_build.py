# SPDX-License-Identifier: GPL-2.0-only
"""The build stage: what makes a new core, what does not, and what can go wrong."""

import os
import shutil
import sysconfig

import pytest
from virtmm.arch import load_arch, names

from virtmm import build_core, kbuild, topdir
from virtmm.build_core import BuildError
from virtmm.kconfig import defconfigs, resolve

CSRC = topdir() / "csrc"


@pytest.fixture
def csrc(tmp_path):
    """A copy of the C sources, to be changed."""
    return shutil.copytree(CSRC, tmp_path / "csrc")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache of cores, which are to be plain also when the tests run under a sanitizer."""
    monkeypatch.delenv("VIRTMM_SANITIZE", raising=False)
    monkeypatch.setenv("VIRTMM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(kbuild, "_loaded", {})
    return tmp_path / "cache"


@pytest.fixture
def compilations(monkeypatch):
    """The list of folders that compile_core() ran in; it leaves an empty core."""
    ran = []

    def compile_core(work, *_):
        ran.append(work)
        (work / "_core.so").touch()

    monkeypatch.setattr(build_core, "compile_core", compile_core)
    return ran


def build(csrc, cache, arch="arm64", name="baseline_4k", sets=()):
    config = resolve(arch, name, sets=sets)
    shift = config["PAGE_SHIFT"]
    return build_core.build_core(load_arch(arch), shift, config.values, csrc, cache)


# Real cores


@pytest.mark.parametrize("name", [(a, d) for a in names() for d in defconfigs(a)])
def test_every_named_kernel_compiles_without_a_warning(name):
    """Those are errors; most cores are there from other tests, and would not be had they one."""
    arch, defconfig = name
    core = kbuild.load_core(resolve(arch, defconfig), load_arch(arch))
    assert core.lib.set_ptes


# Every kernel of one architecture has every switch, the others have other tables.
@pytest.mark.parametrize("compiler", [c for c in ("clang",) if shutil.which(c)])
@pytest.mark.parametrize(
    "kernel",
    [("arm64", d) for d in defconfigs("arm64")] + [(a, "defconfig") for a in names()],
    ids=" ".join,
)
def test_the_other_compiler_takes_a_core_too(compiler, kernel, cache, monkeypatch):
    monkeypatch.setenv("CC", compiler)
    arch, defconfig = kernel
    assert kbuild.load_core(resolve(arch, defconfig), load_arch(arch)).lib.set_ptes


def test_several_cores_in_one_process(cache):
    """Each has its own page size: two neighbouring pages are that far apart in their entries."""
    cores = {
        shift: kbuild.load_core(resolve("arm64", name), load_arch("arm64"))
        for shift, name in ((12, "baseline_4k"), (14, "baseline_16k"), (16, "baseline_64k"))
    }
    for shift, core in cores.items():
        phys = core.ffi.new("uint64_t[8]")
        k = core.ffi.new("struct vk *", {"phys": phys})
        core.lib.set_ptes(k, 0, (1 << shift) | 1, 2)
        assert list(phys)[:3] == [(1 << shift) | 1, (2 << shift) | 1, 0]
    assert len({core.hash for core in cores.values()}) == 3


def test_several_cores_at_once(cache, monkeypatch):
    """Kernels that need the same core have it compiled once; a compiler that fails is one error."""
    kernels = [resolve("x86", name) for name in ("defconfig", "baseline_4k", "linux-6.12")]
    kbuild.compile_cores([*kernels, kernels[0]])
    assert len(list(cache.glob("x86-*/_core*.so"))) == len(list(cache.iterdir())) == 2
    monkeypatch.setattr(build_core, "compile_core", None)  # nothing is left to compile
    kbuild.compile_cores(kernels)
    monkeypatch.setenv("CC", "no-such-compiler")
    with pytest.raises(BuildError, match="no C compiler 'no-such-compiler'"):
        kbuild.compile_cores(kernels)


def test_a_core_is_loaded_once(cache):
    config, arch = resolve("x86"), load_arch("x86")
    assert kbuild.load_core(config, arch).lib is kbuild.load_core(config, arch).lib


def test_compiler_refuses_a_source(csrc, cache):
    with (csrc / "zero.c").open("a") as f:
        f.write("int broken(void) { return nowhere; }\n")
    with pytest.raises(BuildError) as e:
        build(csrc, cache)
    text = str(e.value)
    assert text.startswith("compiling the C core failed: ")
    assert "zero.c" in text and "nowhere" in text
    assert "\n" not in text
    assert list(cache.iterdir()) == []


@pytest.mark.parametrize(
    "code, warning",
    [
        ("static int unused_thing;", "unused_thing"),
        ("int shadow(int a);\nint shadow(int a) { { int a = 1; return a; } }", "shadows"),
    ],
)
def test_warning_is_an_error_unless_werror_is_off(csrc, cache, code, warning):
    with (csrc / "zero.c").open("a") as f:
        f.write(code + "\n")
    build(csrc, cache, sets=["WERROR=n"])
    with pytest.raises(BuildError, match=warning):
        build(csrc, cache)


def test_core_that_cannot_be_loaded(cache, compilations):
    core, _ = build(CSRC, cache, arch="x86")
    with pytest.raises(BuildError, match="delete its folder and try again") as e:
        kbuild.load_core(resolve("x86"), load_arch("x86"))
    assert str(core) in str(e.value)


# The cache


def test_what_needs_no_new_core(csrc, cache, compilations):
    first = build(csrc, cache)
    for file in csrc.iterdir():
        os.utime(file, (1, 1))
    assert build(csrc, cache) == first
    assert build(csrc, cache, sets=["COST_RELEASE=9.9", "MEMORY_MB=64"]) == first
    assert len(compilations) == 1


def test_what_needs_a_new_core(csrc, cache, compilations, monkeypatch):
    seen = {build(csrc, cache)}

    def changed():
        result = build(csrc, cache)
        new = result not in seen
        seen.add(result)
        return new

    assert build(csrc, cache, name="baseline_16k") not in seen
    assert build(csrc, cache, arch="x86") not in seen
    for name in ("zero.c", "core.h"):
        with (csrc / name).open("a") as f:
            f.write("/* */\n")
        assert changed()
    with (csrc / "core.cdef").open("a") as f:
        f.write("int more(void);\n")
    assert changed()
    monkeypatch.setenv("CFLAGS", "-g")
    assert changed()
    monkeypatch.setenv("VIRTMM_SANITIZE", "undefined")
    assert changed()
    assert not changed()
    assert len(compilations) == 8


def test_hash_of_a_core_does_not_depend_on_the_compiler(csrc, cache, compilations, monkeypatch):
    path, content = build(csrc, cache)
    monkeypatch.setenv("CFLAGS", "-g")
    other_path, other_content = build(csrc, cache)
    assert content == other_content
    assert path != other_path


def test_symbol_that_c_names_needs_a_new_core(csrc, cache, compilations):
    with (csrc / "zero.c").open("a") as f:
        f.write("int debug = CONFIG_DEBUG_VM; /* CONFIG_IN_A_COMMENT */\n")
    off, on = build(csrc, cache), build(csrc, cache, sets=["DEBUG_VM=y"])
    assert off != on


def test_cached_core_needs_no_compiler(csrc, cache, compilations, monkeypatch):
    first = build(csrc, cache)
    monkeypatch.setattr(build_core, "check_tools", lambda: pytest.fail("looked for tools"))
    assert build(csrc, cache) == first


def test_folder_in_the_cache_that_lost_its_core(csrc, cache, compilations):
    path, _ = build(csrc, cache)
    path.unlink()
    assert build(csrc, cache)[0] == path
    assert path.is_file()


def test_another_process_was_faster(csrc, cache, monkeypatch):
    def compile_core(work, *_):
        (work / "_core.so").write_text("slow")
        other = cache / done.name
        other.mkdir()
        (other / "_core.so").write_text("fast")

    monkeypatch.setattr(build_core, "compile_core", lambda work, *_: (work / "_core.so").touch())
    done = build(csrc, cache)[0].parent
    shutil.rmtree(done)
    monkeypatch.setattr(build_core, "compile_core", compile_core)
    assert build(csrc, cache)[0].read_text() == "fast"
    assert [p.name for p in cache.iterdir()] == [done.name]


def test_interrupt_leaves_nothing(csrc, cache, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(build_core, "compile_core", interrupted)
    with pytest.raises(KeyboardInterrupt):
        build(csrc, cache)
    assert list(cache.iterdir()) == []


def test_cache_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("VIRTMM_CACHE", "/a")
    assert str(kbuild.cache_folder()) == "/a"
    monkeypatch.delenv("VIRTMM_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/b")
    assert str(kbuild.cache_folder()) == "/b/virtmm"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert kbuild.cache_folder() == tmp_path / ".cache" / "virtmm"


# What is missing


def one_line(csrc, cache):
    with pytest.raises(BuildError) as e:
        build(csrc, cache)
    assert "\n" not in str(e.value)
    return str(e.value)


def test_no_compiler(csrc, cache, monkeypatch):
    monkeypatch.setenv("CC", "no-such-cc -m64")
    assert one_line(csrc, cache) == (
        "no C compiler 'no-such-cc'; install gcc and libc6-dev, or set CC"
    )
    assert not cache.exists()


def test_no_python_h(csrc, cache, monkeypatch, tmp_path):
    path = sysconfig.get_path
    monkeypatch.setattr(
        sysconfig, "get_path", lambda name: str(tmp_path) if name == "include" else path(name)
    )
    assert one_line(csrc, cache).startswith(f"{tmp_path}: no Python.h in it; install python3-dev")


def test_unwritable_cache(csrc, tmp_path):
    (tmp_path / "file").touch()
    cache = tmp_path / "file" / "cache"
    text = one_line(csrc, cache)
    assert text == f"{cache}: Not a directory; set VIRTMM_CACHE to a folder you may write"


def test_unknown_sanitizer(csrc, cache, monkeypatch):
    monkeypatch.setenv("VIRTMM_SANITIZE", "thread")
    assert (
        one_line(csrc, cache)
        == "VIRTMM_SANITIZE=thread: choose one of address undefined address,undefined"
    )


def test_symbol_without_a_value(csrc, cache):
    with (csrc / "zero.c").open("a") as f:
        f.write("int typo = CONFIG_DEBUG_VN;\n")
    assert "CONFIG_DEBUG_VN has no value" in one_line(csrc, cache)


def test_array_that_is_not_understood(csrc, cache):
    with (csrc / "arena.def").open("a") as f:
        f.write('ARRAY(odd, double, one, 1, "odd")\n')
    assert "arena.def: ARRAY(odd, double" in one_line(csrc, cache)


# Generated headers


def test_autoconf_has_each_type(tmp_path):
    source = tmp_path / "a.c"
    source.write_text("CONFIG_ON CONFIG_OFF CONFIG_INT CONFIG_TEXT // CONFIG_NOT_THIS\n")
    values = {"ON": True, "OFF": False, "INT": 12, "TEXT": 'a"b\\', "OTHER": 1}
    assert build_core.autoconf_h([source], values).splitlines()[1:] == [
        "#define CONFIG_INT 12",
        "#define CONFIG_OFF 0",
        "#define CONFIG_ON 1",
        '#define CONFIG_TEXT "a\\"b\\\\"',
    ]


def test_geometry_comes_from_the_architecture():
    arch = load_arch("arm64")
    text = build_core.geometry_h(arch, 16)
    assert "#define PAGE_SHIFT 16\n" in text
    assert f"#define PTE_PFN_MASK {arch.pte.pfn_mask(16):#x}ULL\n" in text
    assert f"#define PTE_WRITE_OFF {arch.pte.write.off:#x}ULL\n" in text


# The front of make core


def test_main(cache, tmp_path, capsys):
    (tmp_path / ".config").write_text(resolve("x86").text)
    assert kbuild.main(["--arch", "x86", str(tmp_path / ".config")]) == 0
    assert capsys.readouterr().out.startswith("core ")
    assert kbuild.main(["--arch", "arm64", str(tmp_path / ".config")]) == 2
    assert "X86_64 is x86, not arm64; say --arch x86" in capsys.readouterr().err
    assert kbuild.main(["--arch", "vax", str(tmp_path / ".config")]) == 2
    assert kbuild.main(["--arch", "x86", str(tmp_path / "no")]) == 2
