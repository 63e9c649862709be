"""Builds the tree that this folder is in: conan create packaging/conan. Options bring what a component needs, or build it."""

import re
from pathlib import Path

from conan import ConanFile
from conan.tools.build import check_min_cppstd
from conan.tools.cmake import CMake, CMakeDeps, CMakeToolchain, cmake_layout
from conan.tools.files import copy, load, rmdir

COMPILED = ("c", "dispatch", "tools")
NEEDS = {"eigen": ("c", "tools", "verify"), "nlohmann_json": ("io", "tools"), "xsimd": ("c", "dispatch", "simd"),
         "onetbb": ("tbb",), "cli11": ("tools",), "fmt": ("tools",)}
VERSIONS = {"eigen": "[>=3.4.0 <6]", "nlohmann_json": "[>=3.11 <4]", "xsimd": "[>=8.1]", "onetbb": "[>=2021]",
            "cli11": "[>=2.1 <3]", "fmt": "[>=9]"}


class MpiRouter(ConanFile):
    name = "mpi_router"
    description = "Manifold Power Iteration for Mixture-of-Experts routers"
    license = "MIT"
    topics = ("mixture-of-experts", "router", "power-iteration", "header-only")
    settings = "os", "arch", "compiler", "build_type"
    options = {name: [True, False] for name in ("c", "dispatch", "io", "simd", "tbb", "tools", "verify")}
    default_options = {name: False for name in options}

    def set_version(self):
        header = load(self, Path(self.recipe_folder, "../../include/mpi_router/core/version.hpp"))
        self.version = ".".join(re.findall(r"_VERSION_\w+ (\d+)", header))

    def export_sources(self):
        root = Path(self.recipe_folder, "../..")
        for pattern in ("CMakeLists.txt", "LICENSE", "cmake/*", "include/*", "python/*", "tools/*", "examples/data/*"):
            copy(self, pattern, root, self.export_sources_folder)

    def requirements(self):
        for package, wanted_by in NEEDS.items():
            if any(self.options.get_safe(name) for name in wanted_by):
                self.requires(f"{package}/{VERSIONS[package]}", transitive_headers=package not in ("cli11", "fmt"))

    def package_id(self):
        if not any(self.info.options.get_safe(name) for name in COMPILED):
            self.info.clear()

    def validate(self):
        if self.settings.get_safe("compiler.cppstd"):
            check_min_cppstd(self, 20)

    def layout(self):
        cmake_layout(self)

    def generate(self):
        toolchain = CMakeToolchain(self)
        for name in ("TESTS", "EXAMPLES", "BENCHMARKS", "DOCS"):
            toolchain.cache_variables[f"MPIROUTER_BUILD_{name}"] = False
        for name, value in {"FETCH_DEPENDENCIES": False, "WERROR": False, "MPI": "OFF", "C": self.options.c,
                            "DISPATCH": self.options.dispatch, "BUILD_TOOLS": self.options.tools}.items():
            toolchain.cache_variables[f"MPIROUTER_{name}"] = value if isinstance(value, str) else bool(value)
        toolchain.generate()
        CMakeDeps(self).generate()

    def build(self):
        cmake = CMake(self)
        cmake.configure()
        cmake.build()

    def package(self):
        CMake(self).install()
        copy(self, "LICENSE", self.source_folder, Path(self.package_folder, "licenses"))
        rmdir(self, Path(self.package_folder, "share/doc"))

    def package_info(self):
        # The project's own config finds its components; conan's generated one would not.
        self.cpp_info.set_property("cmake_find_mode", "none")
        self.cpp_info.builddirs.append("lib/cmake/mpi_router")
        self.cpp_info.libs = []
        self.cpp_info.bindirs = ["bin"] if self.options.get_safe("tools") else []
