#pragma once

#include <atomic>

namespace host_gpu {
extern std::atomic<int> spaces;    ///< that were taken and not given back
extern std::atomic<int> launches;  ///< of which a GPU would make one each
}  // namespace host_gpu
