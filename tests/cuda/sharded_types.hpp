// What the sources of the storage types check.
#pragma once

#ifdef MPIROUTER_TEST_NCCL
#include <nccl.h>

#include <vector>
#endif

namespace sharded_checks {

void bf16_on_one_gpu();
void f16_on_one_gpu();
void f32_on_one_gpu();
void f64_on_one_gpu();
void decoded_on_one_gpu();
void packed_on_one_gpu();
void packed_parts_are_refused();  // needs no GPU
#ifdef MPIROUTER_TEST_NCCL
void bf16_over_nccl(const std::vector<ncclComm_t>& comms);
void f16_over_nccl(const std::vector<ncclComm_t>& comms);
void f32_over_nccl(const std::vector<ncclComm_t>& comms);
void f64_over_nccl(const std::vector<ncclComm_t>& comms);
void decoded_over_nccl(const std::vector<ncclComm_t>& comms);
#endif

}  // namespace sharded_checks
