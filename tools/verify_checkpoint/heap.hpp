// What the C library does with memory that was given back.
#pragma once

#if __has_include(<malloc.h>)
#include <malloc.h>
#endif

namespace verify {

/// Keeps freed memory for the next expert. glibc returns blocks of more than 128 KiB to the system at once,
/// and the next one has all its pages made again: a tenth of the time of a small expert, and more where
/// several threads change one address space.
inline void keep_freed_memory() {
#if defined(__GLIBC__)
  mallopt(M_MMAP_THRESHOLD, 32 << 20);  // the largest that it takes
  mallopt(M_TRIM_THRESHOLD, 256 << 20);
#endif
}

}  // namespace verify
