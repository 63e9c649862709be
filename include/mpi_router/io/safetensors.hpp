// Reads and writes safetensors checkpoints: safetensors_file, checkpoint (shards) and write_safetensors.
// Needs nlohmann-json, and POSIX or Windows; not part of <mpi_router/mpi_router.hpp>.
//
//   const mpi_router::checkpoint model("model-folder");
//   const auto* t = model.find("model.layers.0.mlp.experts.gate_proj");
//   const auto gates = t->load<mpi_router::bf16>();
//   const auto view = mpi_router::experts_nfd(gates.data(), {t->shape()[0], t->shape()[1], t->shape()[2]});
#pragma once

#include <mpi_router/io/checkpoint.hpp>
#include <mpi_router/io/safetensors_file.hpp>
#include <mpi_router/io/safetensors_writer.hpp>
