/* SPDX-License-Identifier: GPL-2.0-only */
/* What the files of the fuzzer share. */
#ifndef VK_FUZZ_H
#define VK_FUZZ_H

#include "fault.h"
#include "snapshot.h"

/** struct input - what is left of the fuzzer's bytes */
struct input {
	const u8 *p;
	const u8 *end;
};

/** struct fuzz_case - an entry point of the core: how bytes become a call that its contract allows */
struct fuzz_case {
	const char *name;
	void (*run)(struct vk *k, struct input *in);
};

/* Print what is wrong and end the process, for the fuzzer to keep the input. */
_Noreturn void fuzz_fail(const char *file, int line, const char *what);

#define EXPECT(condition)                                          \
	do {                                                       \
		if (!(condition))                                  \
			fuzz_fail(__FILE__, __LINE__, #condition); \
	} while (0)

/* A number of some bytes; bytes that are not there are 0. */
static inline u64 take(struct input *in, unsigned bytes)
{
	u64 value = 0;

	for (unsigned i = 0; i < bytes && in->p < in->end; i++)
		value |= (u64)*in->p++ << 8 * i;
	return value;
}

/* A number below n, of as many bytes as it needs. */
static inline u64 below(struct input *in, u64 n)
{
	return take(in, n <= 1 ? 0 : n <= 1 << 8 ? 1 : n <= 1 << 16 ? 2 : 8) % (n ? n : 1);
}

/* A number of low to high, both included. */
static inline u64 between(struct input *in, u64 low, u64 high)
{
	return low + below(in, high - low + 1);
}

/* in fuzz.c: */
extern const struct image *image;

/* in check.c: */
void check_arena(struct vk *k);
u64 *find_entry(struct vk *k, u64 mm, u64 address, int *huge);

/* One array of cases a file, which ends with a name of NULL: */
extern const struct fuzz_case pte_cases[];
extern const struct fuzz_case page_cases[];
extern const struct fuzz_case program_cases[];
extern const struct fuzz_case space_cases[];
extern const struct fuzz_case mmap_cases[];

#endif
