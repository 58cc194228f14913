// Which sanitizers the kernels are compiled with.
#pragma once

#if defined(CUDA_ON_CPU_ASAN)  // as CMakeLists.txt says it to sources that are compiled without
#elif defined(__SANITIZE_ADDRESS__)
#define CUDA_ON_CPU_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define CUDA_ON_CPU_ASAN 1
#endif
#endif
#ifndef CUDA_ON_CPU_ASAN
#define CUDA_ON_CPU_ASAN 0
#endif

#if defined(__SANITIZE_THREAD__)
#define CUDA_ON_CPU_RACES 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define CUDA_ON_CPU_RACES 1
#endif
#endif
#ifndef CUDA_ON_CPU_RACES
#define CUDA_ON_CPU_RACES 0
#endif

constexpr bool kRacesAreWatched = CUDA_ON_CPU_RACES;

#if CUDA_ON_CPU_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#elif !defined(ASAN_POISON_MEMORY_REGION)
#define ASAN_POISON_MEMORY_REGION(address, size) ((void)(address), (void)(size))
#define ASAN_UNPOISON_MEMORY_REGION(address, size) ((void)(address), (void)(size))
#endif
