/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Loops in vectors wider than every CPU of the architecture has. The core is compiled for all of them, so
 * the caller of a WIDE function asks cpu_is_wide() before, and goes on alone from where it ends. Resolvers
 * in the dynamic linker (target_clones) would ask too, but before a sanitizer is set up.
 */
#ifndef VK_WIDE_H
#define VK_WIDE_H

#include "core.h"

#ifdef __x86_64__
#define WIDE static __attribute__((target("avx2"), noinline))
static inline int cpu_is_wide(void)
{
	return __builtin_cpu_supports("avx2");
}
#else
#define WIDE static __attribute__((noinline))
static inline int cpu_is_wide(void)
{
	return 1; /* elsewhere the compiler makes of a vector what the CPU has */
}
#endif

/* Four entries; any place of an entry will do. */
typedef u64 u64x4 __attribute__((vector_size(32), aligned(8), may_alias));

#endif
