// SPDX-License-Identifier: GPL-2.0-only
/*
 * The core under a fuzzer. An input is a sequence of calls of its entry points, on an arena that Python
 * booted and used (scripts/fuzz.py); what must hold between any two calls is checked behind the last.
 *
 * Each array of the arena ends where nothing is mapped, so a step behind it is seen. The arena is a
 * private mapping of a file: dropping its pages takes back what an input did.
 */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "fuzz.h"

enum { MAX_CALLS = 400, MAX_CASES = 64 };

static const struct fuzz_case *const groups[] = {pte_cases, page_cases, program_cases, space_cases,
						 mmap_cases};
static const struct fuzz_case *cases[MAX_CASES];
static unsigned nr_cases;
static struct vk arenas[NR_IMAGES];
static u8 *memory[NR_IMAGES];
static int verbose;

const struct image *image;

_Noreturn void fuzz_fail(const char *file, int line, const char *what)
{
	fprintf(stderr, "%s:%d: this does not hold: %s\n", file, line, what);
	abort();
}

static void map_image(unsigned i)
{
	int flags = MAP_PRIVATE | MAP_NORESERVE;
	const char *name = images[i].file;
	int fd = open(name, O_RDONLY);
	unsigned nr = 0;

	if (fd < 0) {
		perror(name);
		exit(2);
	}
	memory[i] = mmap(NULL, ARENA_BYTES, PROT_NONE, flags | MAP_ANONYMOUS, -1, 0);
	if (memory[i] == MAP_FAILED) {
		perror("the arena's addresses");
		exit(2);
	}
	for (; nr < NR_SPANS; nr++) {
		void *at = mmap(memory[i] + spans[nr].page, spans[nr].pages, PROT_READ | PROT_WRITE,
				flags | MAP_FIXED, fd, (off_t)spans[nr].page);

		if (at == MAP_FAILED) {
			perror(name);
			exit(2);
		}
	}
	close(fd);
	nr = 0;
#define ARRAY(name, type, count, words, doc) \
	arenas[i].name = (type *)(void *)(memory[i] + spans[nr++].start);
#define FIELD(name, offset, doc)
#define CONST(name, value, doc)
#define EVENT(name, orders, doc)
#define VMSTAT(name, doc)
#define WORK(name, doc)
#define MTHP_STAT(name, doc)
#include "arena.def"
	EXPECT(nr == NR_SPANS);
}

static void reset(unsigned i)
{
	if (madvise(memory[i], ARENA_BYTES, MADV_DONTNEED)) {
		perror("taking back what an input did");
		exit(2);
	}
}

int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerTestOneInput(const u8 *data, size_t size);

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
	(void)argc;
	(void)argv;
	verbose = getenv("FUZZ_VERBOSE") != NULL;
	for (unsigned g = 0; g < sizeof(groups) / sizeof(*groups); g++)
		for (const struct fuzz_case *c = groups[g]; c->name; c++) {
			EXPECT(nr_cases < MAX_CASES);
			cases[nr_cases++] = c;
		}
	for (unsigned i = 0; i < NR_IMAGES; i++) {
		map_image(i);
		image = &images[i];
		check_arena(&arenas[i]);
	}
	return 0;
}

int LLVMFuzzerTestOneInput(const u8 *data, size_t size)
{
	struct input in = {data, data + size};
	unsigned i = (unsigned)below(&in, NR_IMAGES);

	image = &images[i];
	for (int calls = 0; in.p < in.end && calls < MAX_CALLS; calls++) {
		const struct fuzz_case *c = cases[below(&in, nr_cases)];

		if (verbose) {
			fprintf(stderr, "image %u: %s\n", i, c->name);
			c->run(&arenas[i], &in);
			check_arena(&arenas[i]);
		} else {
			c->run(&arenas[i], &in);
		}
	}
	check_arena(&arenas[i]);
	reset(i);
	return 0;
}
