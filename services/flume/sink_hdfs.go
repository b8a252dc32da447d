package flume

import (
	"slices"
	"strconv"
	"strings"
)

// hdfsSink is the conversion of one HDFS sink.
type hdfsSink struct {
	*converter
	group *group
	sink  *Component
	node  *node
	to    string
}

// escapeLetters are the escapes of time that Flume knows.
const escapeLetters = "aAbBcdDeHIjklmMnpsStyYz"

func (h *hdfsSink) write() {
	h.place()
	h.names()
	h.time()
	h.rolls()
	h.format()
	h.rest()
}

// carry writes the value of a key, or Flume's default with a comment when the key is not there.
func (h *hdfsSink) carry(key, to, missing, comment string) string {
	if h.sink.has(key) {
		h.sink.say(key, Carried, "%s.%s", h.to, to)
		return h.sink.value(key)
	}
	if comment != "" {
		parts := strings.Split(to, ".")
		n := h.node
		for _, p := range parts {
			n = n.child(p)
		}
		n.comment(comment)
	}
	return missing
}

// place writes where files go: the file system and the path.
func (h *hdfsSink) place() {
	s := h.sink
	const key = "hdfs.path"
	path := s.value(key)
	if path == "" {
		h.node.text("url", "hdfs:///")
		h.node.text("path", "/flume", "TODO: the sink has no hdfs.path, and Flume does not start it")
		s.say("type", Unsupported, "the sink has no hdfs.path: Flume refuses to start it")
		return
	}
	scheme, rest, found := strings.Cut(path, "://")
	if !found {
		if after, ok := strings.CutPrefix(path, "hdfs:/"); ok {
			scheme, rest = "hdfs", "/"+after
		} else {
			scheme, rest = "", path
		}
	}
	authority, directory := "", rest
	if scheme != "" {
		authority, directory, _ = strings.Cut(rest, "/")
		directory = "/" + directory
	}
	s.say(key, Carried, "%s.url and path", h.to)
	switch scheme {
	case "":
		h.defaultFS(key)
		if !strings.HasPrefix(directory, "/") {
			s.say(key, Changed, "the path is relative, which is the home directory of Flume's user: it was put below /user/flume")
			directory = "/user/flume/" + directory
		}
	case "hdfs":
		h.authority(key, authority)
	case "file":
		h.node.text("url", "file:///")
	default:
		h.node.text("url", "hdfs:///", "TODO: "+scheme+":// is not supported")
		h.confDir()
		s.say(key, Unsupported, "%s:// is not supported: HDFS and local directories are", scheme)
	}
	text := h.template(h.group, s, key, "/"+strings.Trim(directory, "/"), escapeLetters)
	for strings.Contains(text, "//") {
		text = strings.ReplaceAll(text, "//", "/")
	}
	h.node.text("path", text)
}

func (h *hdfsSink) defaultFS(key string) {
	if h.options.DefaultFS != "" {
		h.node.text("url", strings.TrimRight(h.options.DefaultFS, "/"), "from --default-fs: the file names no file system")
		return
	}
	h.node.text("url", "hdfs:///", "fs.defaultFS of conf_dir, as the file names no file system; or import with --default-fs hdfs://namenode:8020")
	h.confDir()
}

func (h *hdfsSink) authority(key, authority string) {
	switch {
	case authority == "":
		h.defaultFS(key)
	case strings.Contains(authority, ":"):
		h.node.text("url", "hdfs://"+authority)
	default:
		h.node.text("url", "hdfs://"+authority, "a nameservice of conf_dir; when it is a host, add the port (8020) and take conf_dir out")
		h.confDir()
	}
}

func (h *hdfsSink) confDir() {
	h.node.text("conf_dir", "/etc/hadoop/conf", "where core-site.xml and hdfs-site.xml are; Flume had them on its class path")
}

// names writes what files are called.
func (h *hdfsSink) names() {
	prefix := h.carry("hdfs.filePrefix", "file_prefix", "FlumeData", "Flume's default")
	h.node.text("file_prefix", h.template(h.group, h.sink, "hdfs.filePrefix", prefix, escapeLetters))
	if h.sink.has("hdfs.fileSuffix") {
		h.node.text("file_suffix", h.carry("hdfs.fileSuffix", "file_suffix", "", ""))
	}
	if h.sink.has("hdfs.inUsePrefix") {
		h.node.text("in_use_prefix", h.carry("hdfs.inUsePrefix", "in_use_prefix", "", ""))
	}
	suffix := h.carry("hdfs.inUseSuffix", "in_use_suffix", ".tmp", "")
	if h.sink.flag("hdfs.emptyInUseSuffix", false) {
		suffix = ""
	}
	if suffix == "" && h.sink.value("hdfs.inUsePrefix") == "" {
		h.sink.say("hdfs.emptyInUseSuffix", Changed, "files in use keep the suffix .tmp: they must not look final")
		suffix = ".tmp"
	}
	h.sink.say("hdfs.emptyInUseSuffix", Carried, "%s.in_use_suffix", h.to)
	if suffix != ".tmp" {
		h.node.text("in_use_suffix", suffix)
	}
}

// rolls writes when files become final. Flume's defaults make a file of ten records, so they are
// written out.
func (h *hdfsSink) rolls() {
	s, roll := h.sink, h.node.child("roll")
	integer := func(key, to, missing, comment string) string {
		return h.integer(key, h.carry(key, "roll."+to, missing, comment), missing)
	}
	seconds := func(key, to, missing, comment string) {
		roll.plain(to, integer(key, to, missing, comment)+"s")
	}
	seconds("hdfs.rollInterval", "interval", "30", "Flume's default; 1h makes fewer files")
	roll.plain("size", integer("hdfs.rollSize", "size", "1024", "Flume's default, in bytes; 128MiB makes files of a block"))
	roll.plain("count", integer("hdfs.rollCount", "count", "10", "Flume's default; 0 lets size and time decide"))
	seconds("hdfs.idleTimeout", "idle", "0", "Flume's default is never; 1m makes files final soon after their last record")
	zero := func(key string) bool { return s.has(key) && number(s.value(key)) == "0" }
	if zero("hdfs.rollInterval") && zero("hdfs.rollSize") && zero("hdfs.rollCount") && (zero("hdfs.idleTimeout") || !s.has("hdfs.idleTimeout")) {
		s.say("hdfs.rollInterval", Changed, "nothing ever makes a file final: it stays in use until the delivery stops; set roll.interval or roll.size")
	}
	if s.has("hdfs.maxOpenFiles") {
		h.node.plain("max_open_files", h.integer("hdfs.maxOpenFiles", h.carry("hdfs.maxOpenFiles", "max_open_files", "", ""), "5000"))
	}
}

// integer returns the digits of a key's value. Where Flume fails to read a number it says so, and
// returns Flume's default.
func (h *hdfsSink) integer(key, value, missing string) string {
	if _, err := strconv.ParseInt(value, 10, 64); err != nil {
		h.sink.say(key, Unsupported, "%q is no number, and Flume does not start the sink (a comment behind a value is a part of it): write the number; until then %s is Flume's default", cut(value, 40), missing)
		return missing
	}
	return number(value)
}

// number returns the digits of a value, as Java's Integer.parseInt takes them, or 0.
func number(s string) string {
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || n < 0 {
		return "0"
	}
	return strconv.FormatInt(n, 10)
}

// codecs are the names and classes of Hadoop's codecs.
var codecs = map[string]string{
	"gzip": "gzip", "gzipcodec": "gzip", "bzip2": "bzip2", "bzip2codec": "bzip2", "snappy": "snappy", "snappycodec": "snappy",
	"deflate": "deflate", "defaultcodec": "deflate", "deflatecodec": "deflate", "default": "deflate", "lz4": "lz4", "lz4codec": "lz4", "zstd": "zstd", "zstandardcodec": "zstd",
}

// format writes what files hold.
func (h *hdfsSink) format() {
	s := h.sink
	fileType := s.value("hdfs.fileType")
	if fileType == "" {
		fileType = "SequenceFile"
	}
	s.say("hdfs.fileType", Carried, "%s.serializer", h.to)
	switch strings.ToLower(fileType) {
	case "sequencefile":
		if s.has("hdfs.fileType") {
			h.node.text("serializer", "sequence_file")
		} else {
			h.node.text("serializer", "sequence_file", "Flume's default; text is what most want")
		}
		if strings.EqualFold(s.value("hdfs.writeFormat"), "text") {
			h.node.text("sequence_value", "text")
		}
		s.say("hdfs.writeFormat", Carried, "%s.sequence_value", h.to)
	case "datastream", "compressedstream":
		s.say("hdfs.writeFormat", NotNeeded, "it means nothing for %s", fileType)
		h.stream()
	default:
		h.node.text("serializer", "text")
		s.say("hdfs.fileType", Unsupported, "Flume knows no file type %s; want SequenceFile, DataStream or CompressedStream", fileType)
	}
	if s.has("hdfs.serializer") {
		s.say("hdfs.serializer", Dropped, "Flume reads the key serializer, without hdfs., and so wrote text")
	}
	if strings.EqualFold(fileType, "datastream") {
		s.say("hdfs.codeC", Changed, "Flume does not start a sink with %s and a codec; here files are not compressed", fileType)
		return
	}
	if strings.EqualFold(fileType, "compressedstream") && !s.has("hdfs.codeC") {
		s.say("hdfs.fileType", Changed, "Flume does not start a sink with %s and without hdfs.codeC; here files are not compressed: set compression", fileType)
	}
	h.compression()
}

// stream writes the serializer of a text file or an Avro file.
func (h *hdfsSink) stream() {
	s := h.sink
	serializer := s.value("serializer")
	s.say("serializer", Carried, "%s.serializer", h.to)
	switch t := strings.ToLower(strings.TrimSuffix(serializer, "$Builder")); t {
	case "", "text", "org.apache.flume.serialization.bodytexteventserializer":
		h.node.text("serializer", "text")
	case "header_and_text", "org.apache.flume.serialization.headerandbodytexteventserializer":
		h.node.text("serializer", "header_and_text")
	case "avro_event", "org.apache.flume.serialization.flumeeventavroeventserializer":
		h.node.text("serializer", "avro_event")
		if codec := s.value("serializer.compressionCodec"); codec != "" && codec != "null" {
			h.node.text("compression", codec)
		}
		s.say("serializer.compressionCodec", Carried, "%s.compression", h.to)
		s.say("serializer.syncIntervalBytes", NotNeeded, "blocks end with commits")
	case "org.apache.flume.sink.hdfs.avroeventserializer":
		h.avroValues()
	default:
		h.node.text("serializer", "text")
		s.say("serializer", Unsupported, "custom serializer %s: serializers are text, header_and_text, json, avro, avro_event, sequence_file and parquet; records are written as they are", serializer)
		for _, k := range s.order {
			if strings.HasPrefix(k.name, "serializer.") {
				s.say(k.name, Unsupported, "belongs to %s", serializer)
			}
		}
	}
	if !s.flag("serializer.appendNewline", true) {
		h.node.plain("append_newline", "false")
	}
	s.say("serializer.appendNewline", Carried, "%s.append_newline", h.to)
}

// avroValues writes containers of the records' values, with the schema that Flume had from a
// header or from the sink.
func (h *hdfsSink) avroValues() {
	s := h.sink
	h.node.text("serializer", "avro")
	schema := s.value("serializer.schemaURL")
	for _, source := range h.group.sources {
		if url := h.headersOf(source)["flume.avro.schema.url"]; url != "" {
			schema = url
		}
	}
	local := strings.TrimPrefix(strings.TrimPrefix(schema, "file://"), "file:")
	switch {
	case schema == "":
		h.node.text("avro_schema", "/etc/spillway/"+identifier(s.Name)+".avsc", "TODO: the schema that producers put into the headers flume.avro.schema.url or flume.avro.schema.literal")
		s.say("serializer", Changed, "%s.serializer: avro, with one schema for all records, in the file of avro_schema: save there what producers put into the headers flume.avro.schema.url or .literal", h.to)
	case strings.HasPrefix(local, "/"):
		h.node.text("avro_schema", local)
		s.say("serializer", Carried, "%s.serializer and avro_schema", h.to)
	default:
		h.node.text("avro_schema", "/etc/spillway/"+identifier(s.Name)+".avsc", "save "+schema+" to this file")
		s.say("serializer", Changed, "%s.serializer: avro, with the schema in the file of avro_schema: save %s there", h.to, schema)
	}
	s.say("serializer.schemaURL", Carried, "%s.avro_schema", h.to)
	if codec := s.value("serializer.compressionCodec"); codec != "" && codec != "null" {
		h.node.text("compression", codec)
	}
	s.say("serializer.compressionCodec", Carried, "%s.compression", h.to)
	s.say("serializer.syncIntervalBytes", NotNeeded, "blocks end with commits")
	s.say("serializer.staticSchemaURL", Dropped, "Flume reads schemaURL")
}

func (h *hdfsSink) compression() {
	codec := h.sink.value("hdfs.codeC")
	if codec == "" {
		return
	}
	short := strings.ToLower(codec[strings.LastIndexByte(codec, '.')+1:])
	if name := codecs[short]; name != "" {
		if name == "deflate" && h.node.child("serializer").value != "sequence_file" {
			name = "gzip"
			h.node.text("compression", name)
			h.sink.say("hdfs.codeC", Changed, "%s.compression: gzip, which has the same content with a header and the extension .gz", h.to)
			return
		}
		h.node.text("compression", name)
		h.sink.say("hdfs.codeC", Carried, "%s.compression", h.to)
		return
	}
	if short == "lzo" || short == "lzop" || short == "lzocodec" || short == "lzopcodec" {
		h.node.text("compression", "gzip", "Flume wrote "+codec+", of which there is no free library; gzip is read wherever Hadoop is, zstd is as fast as LZO")
		h.sink.say("hdfs.codeC", Changed, "%s.compression: gzip in the place of %s: tell the readers of the files, who may go by the suffix", h.to, codec)
		return
	}
	h.node.text("compression", "zstd", "TODO: Flume wrote "+codec+", which Spillway does not have")
	h.sink.say("hdfs.codeC", Unsupported, "%s is not there; choose gzip, zstd, snappy, lz4 or bzip2 with the readers of the files", codec)
}

// rest says of the other keys of the sink what becomes of them.
func (h *hdfsSink) rest() {
	s := h.sink
	h.user()
	for key, note := range map[string]string{
		"hdfs.batchSize":             "commits are " + h.to + ".commit; the default suits",
		"batchSize":                  "commits are " + h.to + ".commit; the default suits",
		"hdfs.txnEventMax":           "commits are " + h.to + ".commit; the default suits",
		"hdfs.threadsPoolSize":       "files are written side by side",
		"hdfs.rollTimerPoolSize":     "rolling needs no threads of its own",
		"hdfs.callTimeout":           "calls are bounded and repeated by the delivery",
		"hdfs.closeTries":            "files are closed until it succeeds",
		"hdfs.retryInterval":         "files are closed until it succeeds",
		"hdfs.minBlockReplicas":      "a file ends when one of its DataNodes fails, and records go on in another",
		"hdfs.tryCount":              "files are closed until it succeeds",
		"hdfs.useRawLocalFileSystem": "files of a directory are synced",
	} {
		s.say(key, NotNeeded, "%s", note)
	}
	ch := h.agent.components[ChannelKind][s.value("channel")]
	batch, capacity := number(s.value("hdfs.batchSize")), "100"
	if ch != nil && ch.has("transactionCapacity") {
		capacity = number(ch.value("transactionCapacity"))
	}
	b, _ := strconv.ParseInt(batch, 10, 64)
	limit, _ := strconv.ParseInt(capacity, 10, 64)
	if ch != nil && b > limit && limit > 0 && slices.Contains([]string{"memory", "file", "spillablememory"}, strings.ToLower(ch.Type())) {
		if ch.has("transactionCapacity") || !strings.EqualFold(ch.Type(), "file") && !strings.EqualFold(ch.Type(), "spillablememory") {
			s.say("hdfs.batchSize", Changed, "it is above the channel's transactionCapacity (%d): Flume 1.11 removes the sink without a word, older ones fail at the first full batch; here the sink works", limit)
		}
	}
}

// user writes who acts on HDFS.
func (h *hdfsSink) user() {
	s := h.sink
	if s.has("hdfs.kerberosPrincipal") {
		k := h.node.child("kerberos")
		k.text("principal", s.value("hdfs.kerberosPrincipal"))
		k.text("keytab", s.value("hdfs.kerberosKeytab"))
		s.say("hdfs.kerberosPrincipal", Carried, "%s.kerberos.principal", h.to)
		s.say("hdfs.kerberosKeytab", Carried, "%s.kerberos.keytab", h.to)
	} else {
		s.say("hdfs.kerberosKeytab", Dropped, "Flume ignores it without hdfs.kerberosPrincipal")
	}
	s.say("hdfs.proxyUser", Unsupported, "there are no proxy users: give the principal the right to write, or use the principal of %s", s.value("hdfs.proxyUser"))
}
