// SPDX-License-Identifier: GPL-2.0-only
/*
 * Time many calls of a function of the core, or of libc, with no Python in between. The core is another
 * module, so its functions come as addresses. All return nanoseconds a call.
 *
 * Calls work on the blocks of a pool in turn: with one block the memory is in the nearest cache, with many
 * it is not.
 */
#include <stdint.h>
#include <string.h>
#include <time.h>

typedef void clear_fn(void *vk, uint64_t pfn, uint64_t nr, uint64_t fault);
typedef void copy_fn(void *vk, uint64_t to, uint64_t from, uint64_t nr);
typedef uint64_t none_fn(void *vk, uint64_t pte, uint64_t nr);
typedef void set_fn(void *vk, uint64_t pte, uint64_t entry, uint64_t nr);
typedef void modify_fn(void *vk, uint64_t pte, uint64_t clear, uint64_t set, uint64_t nr);
typedef void method_fn(unsigned method, void *to, const void *from, uint64_t size, uint64_t step,
		       uint64_t times);
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

/* Return the nanoseconds of each of many runs of a statement, which knows the number i of its block. */
#define RETURN_NS_EACH(pool, calls, statement)                  \
	do {                                                    \
		double start = now();                           \
                                                                \
		for (uint64_t n = 0, i = 0; n < (calls); n++) { \
			statement;                              \
			i = i + 1 < (pool) ? i + 1 : 0;         \
		}                                               \
		return (now() - start) / (double)(calls);       \
	} while (0)

/* Loops over the nr entries of a table; table i is at entry pte + i * nr. */
static double none_core(uintptr_t f, void *vk, uint64_t pte, uint64_t nr, uint64_t pool,
			uint64_t calls)
{
	none_fn *volatile none = (none_fn *)f;

	RETURN_NS_EACH(pool, calls, if (none(vk, pte + i * nr, nr) != nr) return -1);
}

static double set_core(uintptr_t f, void *vk, uint64_t pte, uint64_t nr, uint64_t entry,
		       uint64_t pool, uint64_t calls)
{
	set_fn *volatile set = (set_fn *)f;

	RETURN_NS_EACH(pool, calls, set(vk, pte + i * nr, entry, nr));
}

static double modify_core(uintptr_t f, void *vk, uint64_t pte, uint64_t nr, uint64_t clear,
			  uint64_t set, uint64_t pool, uint64_t calls)
{
	modify_fn *volatile modify = (modify_fn *)f;

	RETURN_NS_EACH(pool, calls, modify(vk, pte + i * nr, clear, set, nr));
}

/* Fill an array with folios. */
static double alloc_core(uintptr_t f, void *vk, unsigned order, uint32_t flags, int user,
			 uint64_t *folio, uint64_t calls)
{
	alloc_fn *volatile alloc = (alloc_fn *)f;

	RETURN_NS_EACH(calls, calls, folio[i] = alloc(vk, order, flags, user));
}

/* Give an array of folios back. */
static double free_core(uintptr_t f, void *vk, int user, const uint64_t *folio, uint64_t calls)
{
	free_fn *volatile give_back = (free_fn *)f;

	RETURN_NS_EACH(calls, calls, give_back(vk, folio[i], user));
}

static double clear_core(uintptr_t f, void *vk, uint64_t pfn, uint64_t nr, uint64_t fault,
			 uint64_t pool, uint64_t calls)
{
	clear_fn *volatile clear = (clear_fn *)f;

	RETURN_NS_EACH(pool, calls, clear(vk, pfn + i * nr, nr, fault));
}

static double clear_libc(char *to, size_t size, uint64_t pool, uint64_t calls)
{
	RETURN_NS_EACH(pool, calls, libc_memset(to + i * size, 0, size));
}

static double copy_core(uintptr_t f, void *vk, uint64_t to, uint64_t from, uint64_t nr,
			uint64_t pool, uint64_t calls)
{
	copy_fn *volatile copy = (copy_fn *)f;

	RETURN_NS_EACH(pool, calls, copy(vk, to + i * nr, from + i * nr, nr));
}

static double copy_libc(char *to, const char *from, size_t size, uint64_t pool, uint64_t calls)
{
	RETURN_NS_EACH(pool, calls, libc_memcpy(to + i * size, from + i * size, size));
}

/* By a method of csrc/zero.c; with from, copying. */
static double run_method(uintptr_t f, unsigned method, char *to, const char *from, uint64_t size,
			 uint64_t pool, uint64_t calls)
{
	double start = now();

	((method_fn *)f)(method, to, from, size, pool > 1 ? size : 0, calls);
	return (now() - start) / (double)calls;
}
