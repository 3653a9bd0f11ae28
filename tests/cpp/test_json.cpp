// The reader of specs: what it understands, and what it refuses.
#include <gtest/gtest.h>

#include "integer/spec.h"

namespace bitpare::integer {
namespace {

TEST(Json, ReadsWhatItShould) {
  Json j = Json::parse(R"( {"a": [1, -2.5e-1, true, null], "b": {"c": "x\"\\\n\u0041"}} )");
  const auto& list = j.at("a").list("a");
  EXPECT_EQ(list[0].whole("a"), 1);
  EXPECT_EQ(list[1].number("a"), -0.25);
  EXPECT_TRUE(list[2].boolean("a"));
  EXPECT_TRUE(list[3].is_null());
  EXPECT_EQ(j.at("b").at("c").text("c"), "x\"\\\nA");
  EXPECT_TRUE(j.get("none").is_null());
  EXPECT_TRUE(Json::parse("{}").object("x").empty());
  // Text is UTF-8, plain and escaped; two escapes make a character beyond the basic plane.
  EXPECT_EQ(Json::parse(R"("gr\u00f6\u00dfe \u20ac \ud83d\ude42 \/\b\f")").text("x"),
            "gr\u00f6\u00dfe \u20ac \U0001f642 /\b\f");
  EXPECT_EQ(Json::parse("\"\u00f6 \u5c64 \U0001f642 \u007f\"").text("x"),
            "\u00f6 \u5c64 \U0001f642 \u007f");
  EXPECT_EQ(Json::parse("\"\\u0000\"").text("x"), std::string(1, '\0'));
  EXPECT_EQ(Json::parse("7").whole("x", 0, 7), 7);
  // Numbers come back as they were printed.
  EXPECT_EQ(Json::parse("0.019999999552965164").number("x"), static_cast<double>(0.02f));
}

TEST(Json, RefusesTheRest) {
  for (const char* text :
       {"", "{", "[1,", "[1 2]", "{\"a\" 1}", "{1: 2}", "tru", "\"x", "1 2", "\"\\u12\"",
        "\"\\u00g9\"", "nan", "1e999", "[1,]", "01", "1.", ".5", "+1", "1e", "\"\\q\"", "\"\n\"",
        "{\"a\":1,}", "\v1",
        // halves of surrogate pairs, bytes that are not UTF-8
        "\"\\ud83d\"", "\"\\ude42\"", "\"\\ud83d\\u0041\"", "\"\x80\"", "\"\xc3\"", "\"\xc0\xaf\"",
        "\"\xe0\x80\xaf\"", "\"\xed\xa0\x80\"", "\"\xf4\x90\x80\x80\"", "\"\xff\""}) {
    EXPECT_THROW(Json::parse(text), std::runtime_error) << text;
  }
  EXPECT_THROW(Json::parse(std::string(100, '[')), std::runtime_error);
  Json j = Json::parse("{\"a\": 1.5}");
  EXPECT_THROW(j.at("a").whole("a"), std::runtime_error);
  EXPECT_THROW(j.at("a").text("a"), std::runtime_error);
  EXPECT_THROW(j.at("b"), std::runtime_error);
  EXPECT_THROW(Json::parse("8").whole("x", 0, 7), std::runtime_error);
  std::string many = "[0";
  for (int64_t i = 0; i < kMostValues; ++i) many += ",0";
  EXPECT_THROW(Json::parse(many + "]"), std::runtime_error);
}

std::string message_of(const std::string& nodes) {
  std::string text = R"({"version": 1, "values": 3, "inputs": [{"value": 0, "channels": 4,
    "rows": false, "scale": 0.5, "range": [-10, 10, 20]}], "nodes": [)" +
                     nodes + R"(], "outputs": [{"value": 1, "rows": false, "floats": false,
    "scale": 1, "zero": 0}]})";
  try {
    Spec::parse(Json::parse(text));
  } catch (const std::runtime_error& error) {
    return error.what();
  }
  return "";
}

TEST(Spec, NamesTheNodeAndTheField) {
  auto pool = [](const std::string& name, const std::string& inputs, const std::string& rest) {
    return R"({"op": "pool", "name": ")" + name + R"(", "inputs": )" + inputs +
           R"(, "output": 1, "adaptive": true, )" + rest + "}";
  };
  EXPECT_EQ(message_of(pool("a", "[0]", R"("maximum": true, "size": [1, 1], "least": 0)")), "");
  EXPECT_EQ(message_of(pool("a", "[0]", R"("maximum": true, "size": [1], "least": 0)")),
            "node 0 (a): size must have 2 numbers");
  EXPECT_EQ(message_of(pool("b", "[0]", R"("maximum": true, "size": [1, 1])")),
            "node 0 (b): least is missing");
  EXPECT_EQ(message_of(pool("c", "[2]", R"("maximum": true, "size": [1, 1], "least": 0)")),
            "node 0 (c): value 2 is used before it is made");
  EXPECT_EQ(message_of(R"({"op": "fly", "name": "d", "inputs": [0], "output": 1})"),
            "node 0 (d): op 'fly' is not known");
  EXPECT_THROW(Spec::parse(Json::parse(R"({"version": 2})")), std::runtime_error);
}

}  // namespace
}  // namespace bitpare::integer
