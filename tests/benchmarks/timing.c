// SPDX-License-Identifier: GPL-2.0-only
/*
 * Time many calls of a function of the core, or of libc, with no Python in between. The core is another
 * module, so its functions come as addresses. All return nanoseconds a call.
 *
 * Call i works on block i modulo pool: with one block the memory is in the nearest cache, with many it
 * is not.
 */
#include <stdint.h>
#include <string.h>
#include <time.h>

typedef void clear_fn(void *vk, uint64_t pfn, uint64_t nr, uint64_t fault);
typedef void copy_fn(void *vk, uint64_t to, uint64_t from, uint64_t nr);
typedef uint64_t none_fn(void *vk, uint64_t pte, uint64_t nr);
typedef void set_fn(void *vk, uint64_t pte, uint64_t entry, uint64_t nr);
typedef void modify_fn(void *vk, uint64_t pte, uint64_t clear, uint64_t set, uint64_t nr);
typedef uint64_t alloc_fn(void *vk, unsigned order, uint32_t flags, int user);
typedef void free_fn(void *vk, uint64_t folio, int user);

/* Through volatile pointers, so that the compiler can neither expand nor drop a call. */
static void *(*volatile libc_memset)(void *, int, size_t) = memset;
static void *(*volatile libc_memcpy)(void *, const void *, size_t) = memcpy;

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return 1e9 * (double)t.tv_sec + (double)t.tv_nsec;
}

/* Return the nanoseconds of each of many runs of a statement, which knows its number i. */
#define RETURN_NS_EACH(calls, statement)                  \
	do {                                              \
		double start = now();                     \
                                                          \
		for (uint64_t i = 0; i < (calls); i++)    \
			statement;                        \
		return (now() - start) / (double)(calls); \
	} while (0)

/* Loops over the nr entries of a table; table i is at entry pte + i * nr. */
static double none_core(uintptr_t f, void *vk, uint64_t pte, uint64_t nr, uint64_t pool,
			uint64_t calls)
{
	none_fn *volatile none = (none_fn *)f;

	RETURN_NS_EACH(calls, if (none(vk, pte + i % pool * nr, nr) != nr) return -1);
}

static double set_core(uintptr_t f, void *vk, uint64_t pte, uint64_t nr, uint64_t entry,
		       uint64_t pool, uint64_t calls)
{
	set_fn *volatile set = (set_fn *)f;

	RETURN_NS_EACH(calls, set(vk, pte + i % pool * nr, entry, nr));
}

static double modify_core(uintptr_t f, void *vk, uint64_t pte, uint64_t nr, uint64_t clear,
			  uint64_t set, uint64_t pool, uint64_t calls)
{
	modify_fn *volatile modify = (modify_fn *)f;

	RETURN_NS_EACH(calls, modify(vk, pte + i % pool * nr, clear, set, nr));
}

/* Fill an array with folios. */
static double alloc_core(uintptr_t f, void *vk, unsigned order, uint32_t flags, int user,
			 uint64_t *folio, uint64_t calls)
{
	alloc_fn *volatile alloc = (alloc_fn *)f;

	RETURN_NS_EACH(calls, folio[i] = alloc(vk, order, flags, user));
}

/* Give an array of folios back. */
static double free_core(uintptr_t f, void *vk, int user, const uint64_t *folio, uint64_t calls)
{
	free_fn *volatile give_back = (free_fn *)f;

	RETURN_NS_EACH(calls, give_back(vk, folio[i], user));
}

static double clear_core(uintptr_t f, void *vk, uint64_t pfn, uint64_t nr, uint64_t fault,
			 uint64_t pool, uint64_t calls)
{
	clear_fn *volatile clear = (clear_fn *)f;

	RETURN_NS_EACH(calls, clear(vk, pfn + i % pool * nr, nr, fault));
}

static double clear_libc(char *to, size_t size, uint64_t pool, uint64_t calls)
{
	RETURN_NS_EACH(calls, libc_memset(to + i % pool * size, 0, size));
}

static double copy_core(uintptr_t f, void *vk, uint64_t to, uint64_t from, uint64_t nr,
			uint64_t pool, uint64_t calls)
{
	copy_fn *volatile copy = (copy_fn *)f;

	RETURN_NS_EACH(calls, copy(vk, to + i % pool * nr, from + i % pool * nr, nr));
}

static double copy_libc(char *to, const char *from, size_t size, uint64_t pool, uint64_t calls)
{
	RETURN_NS_EACH(calls, libc_memcpy(to + i % pool * size, from + i % pool * size, size));
}
