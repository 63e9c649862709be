// Memory that the ranks of a communicator of NCCL write to each other's: a window, and what is needed to
// meet.
#pragma once

#include <nccl.h>
#include <nccl_device.h>

#include <cstddef>
#include <cstdio>
#include <cstdlib>

/// All ranks make it together, each on its device, and end it together.
class nccl_memory {
 public:
  nccl_memory(ncclComm_t comm, std::size_t bytes) : comm_(comm), bytes_(bytes) {
    must(ncclMemAlloc(&data_, bytes));
    must(ncclCommWindowRegister(comm, data_, bytes, &window_, NCCL_WIN_COLL_SYMMETRIC));
#ifdef NCCL_DEV_COMM_REQUIREMENTS_INITIALIZER
    ncclDevCommRequirements needs = NCCL_DEV_COMM_REQUIREMENTS_INITIALIZER;
#else
    ncclDevCommRequirements needs = {};
#endif
    needs.lsaBarrierCount = 1;
    must(ncclDevCommCreate(comm, &needs, &device_));
  }
  nccl_memory(const nccl_memory&) = delete;
  nccl_memory& operator=(const nccl_memory&) = delete;
  ~nccl_memory() {
    must(ncclDevCommDestroy(comm_, &device_));
    must(ncclCommWindowDeregister(comm_, window_));
    must(ncclMemFree(data_));
  }
  [[nodiscard]] void* data() const { return data_; }
  [[nodiscard]] std::size_t size() const { return bytes_; }
  [[nodiscard]] ncclWindow_t window() const { return window_; }
  [[nodiscard]] const ncclDevComm& device() const { return device_; }

 private:
  void must(ncclResult_t code) const {
    if (code == ncclSuccess) return;
    std::printf("NCCL: %s: %s\n", ncclGetErrorString(code), ncclGetLastError(comm_));
    std::exit(1);
  }
  ncclComm_t comm_;
  std::size_t bytes_;
  void* data_ = nullptr;
  ncclWindow_t window_{};
  ncclDevComm device_{};
};
