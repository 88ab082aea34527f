# cpr: moves running processes between hosts.  `make` builds, `make demo` shows, `make check` tests.
#
#   make BUILD=dir SAN=address,undefined CC=clang WERROR=1

BUILD ?= build
ifeq ($(origin CC),default)
CC = gcc
endif
OPT ?= -O2 -g
WERROR ?= 1
SAN ?=
INJECT ?=
PKGS_LIB = libprotobuf-c libxxhash
PKGS_transport = openssl
PKGS_engine = libnl-3.0 libnl-route-3.0 libnftables
PKGS_agent = libevent json-c uuid libseccomp libcap libcurl

WARN = -Wall -Wextra -Wshadow -Wmissing-prototypes -Wstrict-prototypes -Wno-missing-field-initializers
ifneq ($(WERROR),0)
WARN += -Werror
endif
CFLAGS_ALL = -std=gnu17 -D_GNU_SOURCE $(OPT) $(WARN) -fno-strict-aliasing -fstack-protector-strong $(CFLAGS)
LDFLAGS_ALL = $(LDFLAGS)
ifneq ($(SAN),)
CFLAGS_ALL += -fsanitize=$(SAN) -fno-omit-frame-pointer -Wno-format-truncation
LDFLAGS_ALL += -fsanitize=$(SAN)
endif
ifneq ($(INJECT),)
CFLAGS_ALL += -DINJECT=1
endif

ARCH := $(shell $(CC) -dumpmachine | cut -d- -f1)
PROTO_GEN = $(foreach p,image wire,$(BUILD)/gen/$(p).pb-c.c $(BUILD)/gen/$(p).pb-c.h)

# A layer sees its own folder and those below it: what is not on the include path can't be included.
INC_proto = -Iproto -I$(BUILD)/gen
INC_transport = $(INC_proto) -Itransport
INC_engine = $(INC_proto) -Iengine -Iengine/arch -Iengine/fd -Iengine/sock -Iengine/net
INC_agent = $(INC_engine) -Itransport -Iagent
INC_test = $(INC_agent) -Itest/lib

PC = $(shell pkg-config --cflags $(1) 2>/dev/null)
PL = $(shell pkg-config --libs $(1) 2>/dev/null)
PKG_proto = $(call PC,$(PKGS_LIB))
PKG_transport = $(PKG_proto) $(call PC,$(PKGS_transport))
PKG_engine = $(PKG_proto) $(call PC,$(PKGS_engine))
PKG_agent = $(PKG_proto) $(call PC,$(PKGS_agent)) $(call PC,$(PKGS_engine))
LIBS_ALL := $(call PL,$(PKGS_LIB) $(PKGS_transport) $(PKGS_engine) $(PKGS_agent)) -lpthread

SRC_proto = $(wildcard proto/*.c)
SRC_transport = $(filter-out $(wildcard transport/cpr-*.c),$(wildcard transport/*.c))
SRC_engine = $(wildcard engine/*.c engine/fd/*.c engine/sock/*.c engine/net/*.c) engine/arch/$(ARCH).c
SRC_agent = $(filter-out $(wildcard agent/cpr-*.c),$(wildcard agent/*.c))
PROGS = $(patsubst agent/%.c,$(BUILD)/%,$(wildcard agent/cpr-*.c)) $(patsubst transport/%.c,$(BUILD)/%,$(wildcard transport/cpr-*.c))

OBJ = $(patsubst %.c,$(BUILD)/obj/%.o,$(1))
# A file whose text changes with $(2), and only then: what depends on it is made again with other flags or sources.
STAMP = $(shell mkdir -p $(dir $(1)); printf '%s\n' '$(2)' | cmp -s - $(1) || printf '%s\n' '$(2)' >$(1))$(1)
ifeq ($(filter clean format demo check check-full bench torture deps,$(MAKECMDGOALS)),)
FLAGS := $(call STAMP,$(BUILD)/flags,$(CC) $(CFLAGS_ALL) $(LDFLAGS_ALL))
$(foreach l,proto transport engine agent,$(eval LIST_$(l) := $(call STAMP,$(BUILD)/$(l).list,$(SRC_$(l)))))
endif
LIBS = $(BUILD)/libagent.a $(BUILD)/libengine.a $(BUILD)/libtransport.a $(BUILD)/libproto.a

.PHONY: all
all: $(PROGS)

# Both files come from one run; the header is a target too, so that objects follow a changed .proto.
$(BUILD)/gen/%.pb-c.c $(BUILD)/gen/%.pb-c.h: proto/%.proto
	@mkdir -p $(@D)
	protoc-c -Iproto --c_out=$(@D) $<

$(BUILD)/obj/gen/%.o: $(BUILD)/gen/%.c $(FLAGS)
	@mkdir -p $(@D)
	$(CC) $(CFLAGS_ALL) -Wno-shadow $(PKG_proto) -I$(BUILD)/gen -c -o $@ $<

define LAYER
$(BUILD)/obj/$(1)/%.o: $(1)/%.c $(FLAGS) | $(PROTO_GEN)
	@mkdir -p $$(@D)
	$$(CC) $$(CFLAGS_ALL) -MMD -MP $$(INC_$(1)) $$(PKG_$(1)) -c -o $$@ $$<
$(BUILD)/lib$(1).a: $$(call OBJ,$$(SRC_$(1))) $$(LIST_$(1))
	@rm -f $$@
	ar rcs $$@ $$(filter %.o,$$^)
endef
$(foreach l,transport engine agent,$(eval $(call LAYER,$(l))))
$(BUILD)/obj/proto/%.o: proto/%.c $(FLAGS) | $(PROTO_GEN)
	@mkdir -p $(@D)
	$(CC) $(CFLAGS_ALL) -MMD -MP $(INC_proto) $(PKG_proto) -c -o $@ $<
$(BUILD)/libproto.a: $(call OBJ,$(SRC_proto)) $(BUILD)/obj/gen/image.pb-c.o $(BUILD)/obj/gen/wire.pb-c.o $(LIST_proto)
	@rm -f $@
	ar rcs $@ $(filter %.o,$^)

$(BUILD)/cpr-%: $(BUILD)/obj/agent/cpr-%.o $(LIBS)
	$(CC) $(CFLAGS_ALL) $(LDFLAGS_ALL) -o $@ $< -Wl,--start-group $(LIBS) -Wl,--end-group $(LIBS_ALL)
# The wire has nothing of engine or agent in it.
$(BUILD)/cpr-wire: $(BUILD)/obj/transport/cpr-wire.o $(BUILD)/libtransport.a $(BUILD)/libproto.a
	$(CC) $(CFLAGS_ALL) $(LDFLAGS_ALL) -o $@ $^ $(call PL,$(PKGS_LIB) $(PKGS_transport) libseccomp) -lpthread

# Nothing that is made is thrown away as intermediate.
.SECONDARY:

# Unit tests: test/unit/LAYER_name.c links its layer and those below; some run programs, too.
UNIT = $(patsubst test/unit/%.c,$(BUILD)/unit/%,$(wildcard test/unit/*.c))
LIBS_unit_proto = $(BUILD)/libproto.a
LIBS_unit_transport = $(BUILD)/libtransport.a $(BUILD)/libproto.a
LIBS_unit_engine = $(BUILD)/libengine.a $(BUILD)/libproto.a
LIBS_unit_agent = $(LIBS)
.SECONDEXPANSION:
$(BUILD)/unit/%: test/unit/%.c $$(LIBS_unit_$$(firstword $$(subst _, ,$$*)))
	@mkdir -p $(@D)
	$(CC) $(CFLAGS_ALL) -MMD -MP $(INC_test) $(PKG_agent) $(PKG_transport) $(LDFLAGS_ALL) -o $@ $< -Wl,--start-group $(LIBS_unit_$(firstword $(subst _, ,$*))) -Wl,--end-group $(LIBS_ALL) -lcmocka
.PHONY: unit
unit: $(UNIT)
$(BUILD)/unit/transport_link $(BUILD)/bench/linkraw: | $(BUILD)/cpr-wire
$(BUILD)/unit/agent_warden: | $(BUILD)/cpr-warden

# Programs of the test suite: victims and helpers, free-standing.
VICTIMS = $(patsubst test/victims/%.c,$(BUILD)/victims/%,$(wildcard test/victims/*.c)) $(patsubst test/victims/%.cc,$(BUILD)/victims/%,$(wildcard test/victims/*.cc))
$(BUILD)/victims/%: test/victims/%.c
	@mkdir -p $(@D)
	gcc -std=gnu17 -D_GNU_SOURCE -O2 -g -Wall -Wextra $(if $(filter-out 0,$(WERROR)),-Werror) -MMD -MP -Itest/lib -o $@ $< -lpthread -lrt
$(BUILD)/victims/%: test/victims/%.cc
	@mkdir -p $(@D)
	g++ -O2 -g -Wall -Wextra $(if $(filter-out 0,$(WERROR)),-Werror) -MMD -MP -Itest/lib -o $@ $< -lpthread
.PHONY: victims
victims: $(VICTIMS)

BENCHES = $(patsubst test/bench/%.c,$(BUILD)/bench/%,$(wildcard test/bench/*.c))
$(BUILD)/bench/%: test/bench/%.c $(LIBS)
	@mkdir -p $(@D)
	$(CC) $(CFLAGS_ALL) -MMD -MP $(INC_test) $(PKG_agent) $(PKG_transport) $(LDFLAGS_ALL) -o $@ $< -Wl,--start-group $(LIBS) -Wl,--end-group $(LIBS_ALL)
.PHONY: benches
benches: $(BENCHES)

# The programs find each other in one folder: DESTDIR=/tmp/x PREFIX=/usr for a package.
PREFIX ?= /usr/local
.PHONY: install
install: all
	install -d $(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(PREFIX)/libexec/cpr
	install $(BUILD)/cpr-migrate tools/cpr-pki $(DESTDIR)$(PREFIX)/bin
	install $(filter-out %/cpr-migrate,$(PROGS)) $(DESTDIR)$(PREFIX)/libexec/cpr
	install -d $(DESTDIR)$(PREFIX)/sbin
	ln -sf ../libexec/cpr/cpr-agent $(DESTDIR)$(PREFIX)/sbin/cpr-agent
	for p in docs/*.[1-8]; do install -D -m 644 $$p $(DESTDIR)$(PREFIX)/share/man/man$${p##*.}/$${p##*/} || exit 1; done
	install -D -m 644 systemd/cpr.sysusers $(DESTDIR)$(PREFIX)/lib/sysusers.d/cpr.conf
	install -D -m 644 systemd/cpr.tmpfiles $(DESTDIR)$(PREFIX)/lib/tmpfiles.d/cpr.conf

.PHONY: deps demo check check-full bench torture format clean
deps:
	test/setup.sh
demo:
	test/run.sh demo
check:
	test/run.sh check
check-full:
	test/run.sh check-full
bench:
	test/run.sh bench
torture:
	test/run.sh torture
format:
	clang-format -i $(shell git ls-files '*.c' '*.h' '*.cc')
clean:
	rm -rf $(BUILD)

-include $(shell find $(BUILD)/obj $(BUILD)/unit $(BUILD)/victims $(BUILD)/bench -name '*.d' -type f 2>/dev/null)
