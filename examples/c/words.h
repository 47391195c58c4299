/* words - count the words of a text */
#ifndef WORDS_H
#define WORDS_H

#include <stdio.h>
#include <stddef.h>

/* A table of words and how often each came. */
struct table;

struct table *table_new(void);
void table_free(struct table *t);
int table_add(struct table *t, const char *word, size_t len);
size_t table_size(const struct table *t);

/* The n most frequent, most frequent first, equal ones by name. */
struct entry {
	char *word;
	unsigned long count;
};
size_t table_top(const struct table *t, struct entry *out, size_t n);

unsigned long hash(const char *s, size_t len);

/* Reads words from a stream into a table; 0 or an errno value. */
int read_words(FILE *in, struct table *t);

void print_bars(FILE *out, const struct entry *e, size_t n, int width);

#endif
