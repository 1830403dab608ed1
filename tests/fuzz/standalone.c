// SPDX-License-Identifier: GPL-2.0-only
/*
 * The fuzzer's inputs without a fuzzer, for any compiler: those in the files named, or with a number in
 * their place as many as that, made by rule.
 */
#include <stdio.h>
#include <stdlib.h>

#include "core.h"

enum { MAX_INPUT = 1 << 16, RANDOM_INPUT = 1024 };

int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerTestOneInput(const u8 *data, size_t size);

static u8 bytes[MAX_INPUT];

static void from_file(const char *name)
{
	FILE *f = fopen(name, "rb");
	size_t size;

	if (!f) {
		perror(name);
		exit(2);
	}
	size = fread(bytes, 1, sizeof(bytes), f);
	fclose(f);
	LLVMFuzzerTestOneInput(bytes, size);
}

static void by_rule(u64 seed)
{
	u64 x = seed * 0x9e3779b97f4a7c15 + 1;
	size_t size = 16 + seed * 61 % (RANDOM_INPUT - 16);

	for (size_t i = 0; i < size; i++) {
		x ^= x << 13;
		x ^= x >> 7;
		x ^= x << 17;
		bytes[i] = (u8)(x >> 32);
	}
	LLVMFuzzerTestOneInput(bytes, size);
}

int main(int argc, char **argv)
{
	char *end;
	u64 nr = argc == 2 ? strtoull(argv[1], &end, 10) : 0;

	LLVMFuzzerInitialize(&argc, &argv);
	if (nr && !*end) {
		for (u64 seed = 0; seed < nr; seed++)
			by_rule(seed);
		return 0;
	}
	for (int i = 1; i < argc; i++)
		from_file(argv[i]);
	return 0;
}
